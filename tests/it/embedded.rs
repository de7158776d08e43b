//! The embedded PostgreSQL: shared, adopted, recovered, and never run by root.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use nvd_support_car::db::embedded::{Cluster, EmbeddedError, Options};
use sqlx::{Connection, PgConnection};

use crate::process::folder;

fn options(folder: &Path) -> Options {
    let mut options = Options::below(folder);
    options.shared_buffers_mib = Some(128);
    options
}

async fn connect(cluster: &Cluster) -> PgConnection {
    PgConnection::connect(&cluster.url("nvd")).await.expect("connection")
}

async fn setting(connection: &mut PgConnection, name: &str) -> String {
    sqlx::query_scalar("SELECT current_setting($1)").bind(name).fetch_one(connection).await.expect(name)
}

#[tokio::test]
async fn it_is_durable_reachable_from_this_machine_only_and_asks_for_its_password() {
    let folder = folder();
    let cluster = Cluster::start(options(folder.path())).await.expect("start");
    let mut connection = connect(&cluster).await;
    for (name, value) in
        [("fsync", "on"), ("synchronous_commit", "on"), ("full_page_writes", "on"), ("listen_addresses", "127.0.0.1")]
    {
        assert_eq!(setting(&mut connection, name).await, value, "{name}");
    }
    let without = format!("postgres://nvd:wrong@127.0.0.1:{}/nvd", cluster.port());
    assert!(PgConnection::connect(&without).await.is_err());
    let mode =
        std::fs::metadata(folder.path().join("secrets/postgres_password")).expect("password").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    cluster.stop().await.expect("stop");
}

#[tokio::test]
async fn data_survive_an_orderly_stop_and_a_kill_of_the_server() {
    let folder = folder();
    let cluster = Cluster::start(options(folder.path())).await.expect("start");
    sqlx::query("CREATE TABLE kept (id int)").execute(&mut connect(&cluster).await).await.expect("table");
    cluster.stop().await.expect("stop");
    let cluster = Cluster::start(options(folder.path())).await.expect("start again");
    sqlx::query("INSERT INTO kept VALUES (1)").execute(&mut connect(&cluster).await).await.expect("row");
    let killed = cluster.pid();
    kill(Pid::from_raw(killed.cast_signed()), Signal::SIGKILL).expect("kill");
    std::mem::forget(cluster);
    let cluster = Cluster::start(options(folder.path())).await.expect("recover");
    assert_ne!(cluster.pid(), killed);
    let rows: i64 =
        sqlx::query_scalar("SELECT count(*) FROM kept").fetch_one(&mut connect(&cluster).await).await.expect("count");
    assert_eq!(rows, 1);
    // The share that was forgotten above still counts as a user in this process.
    kill(Pid::from_raw(cluster.pid().cast_signed()), Signal::SIGINT).expect("stop");
    cluster.stop().await.expect("stop");
}

#[tokio::test]
async fn the_last_of_several_users_stops_it() {
    let folder = folder();
    let (one, two) = tokio::join!(Cluster::start(options(folder.path())), Cluster::start(options(folder.path())));
    let (one, two) = (one.expect("one"), two.expect("two"));
    assert_eq!(one.pid(), two.pid());
    one.stop().await.expect("first stop");
    connect(&two).await.close().await.expect("still there");
    let file = folder.path().join("postgres/postmaster.pid");
    assert!(file.exists());
    two.stop().await.expect("last stop");
    assert!(!file.exists());
}

#[tokio::test]
async fn as_root_another_user_runs_it_and_owns_its_files() {
    if !geteuid().is_root() {
        eprintln!("not root: PostgreSQL runs as the user of the tests");
        return;
    }
    for name in ["postgres", "nobody"] {
        let Some(user) = User::from_name(name).expect("users") else { continue };
        let folder = folder();
        let mut options = options(folder.path());
        options.user = Some(name.to_owned());
        let cluster = Cluster::start(options).await.expect(name);
        assert_eq!(std::fs::metadata(cluster.dir()).expect("folder").uid(), user.uid.as_raw());
        let process = std::fs::metadata(format!("/proc/{}", cluster.pid())).expect("process");
        assert_eq!(process.uid(), user.uid.as_raw());
        cluster.stop().await.expect("stop");
    }
}

#[tokio::test]
async fn a_folder_that_its_user_cannot_reach_becomes_a_link() {
    if !geteuid().is_root() {
        eprintln!("not root: every folder of the tests is reachable");
        return;
    }
    let folder = folder();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).expect("close");
    let cluster = Cluster::start(options(folder.path())).await.expect("start");
    assert!(folder.path().join("postgres").is_symlink());
    let real = cluster.dir().to_owned();
    connect(&cluster).await.close().await.expect("works");
    cluster.stop().await.expect("stop");
    std::fs::remove_dir_all(real.parent().expect("parent")).expect("clean up");
}

#[tokio::test]
async fn without_binaries_it_says_what_to_install() {
    let folder = folder();
    let mut options = options(folder.path());
    options.search.path = "/nowhere".into();
    options.search.root = folder.path().to_owned();
    let Err(error) = Cluster::start(options).await else {
        // This machine reaches the archive: PostgreSQL was fetched.
        return;
    };
    assert!(matches!(error, EmbeddedError::NoBinaries { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("install") && text.contains("postgresql") && text.contains("DATABASE_URL"), "{text}");
}
