//! The embedded PostgreSQL, with real servers, real processes and real kills.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use nvd_support_car::db::embedded::{Account, Binaries, Cluster, EmbeddedError, OLDEST_MAJOR, Options, Search, Wanted};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::ephemeral::EphemeralCluster;

/// A data directory that takes what is left of its server with it.
struct Site(TempDir);

impl Site {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("nvd embedded ").tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn options(&self) -> Options {
        Options { shared_buffers_mib: Some(32), ..Options::below(self.path()) }
    }

    async fn start(&self) -> Cluster {
        start(self.options()).await
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // The number may be one of another container.
        let dir = self.path().join("postgres");
        let is_ours = |pid: &u32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir);
        if let Some(pid) = postmaster_pid(&dir).filter(is_ours) {
            send(pid, Signal::SIGQUIT);
            wait_for("the server's end", || !runs(pid));
        }
    }
}

/// A process that uses a directory's server until it is killed or its input ends.
struct Holder {
    process: Child,
    /// Kept open, for the process may still print.
    _output: BufReader<ChildStdout>,
    pid: u32,
    dir: PathBuf,
}

impl Holder {
    /// Runs the ignored test `name` of this binary as a process of its own.
    fn start(name: &str, dir: &Path) -> Self {
        Self::spawn(Command::new(std::env::current_exe().unwrap()), name, dir)
    }

    fn spawn(mut program: Command, name: &str, dir: &Path) -> Self {
        let mut process = program
            .args([name, "--ignored", "--nocapture"])
            .env("NVD_TEST_DIR", dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let ready = output.by_ref().lines().map_while(Result::ok);
        let ready = ready.filter_map(|line| Some(line.split_once("READY ")?.1.to_owned())).next();
        let ready = ready.expect("the holder starts");
        let (pid, dir) = ready.split_once(' ').unwrap();
        Self { process, _output: output, pid: pid.parse().unwrap(), dir: dir.into() }
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn end(mut self) {
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}

/// The part of a [`Holder`]'s process.
fn hold(pid: u32, dir: &Path) {
    println!("\nREADY {pid} {}", dir.display());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[tokio::test]
#[ignore = "other tests run it as a process of its own"]
async fn hold_a_cluster() {
    let Some(dir) = std::env::var_os("NVD_TEST_DIR") else {
        return;
    };
    let options = Options { shared_buffers_mib: Some(32), ..Options::below(Path::new(&dir)) };
    let cluster = start(options).await;
    hold(cluster.pid(), cluster.dir());
    cluster.stop().await.unwrap();
}

#[tokio::test]
#[ignore = "other tests run it as a process of its own"]
async fn hold_an_ephemeral_one() {
    if std::env::var_os("NVD_TEST_DIR").is_some() {
        let cluster = EphemeralCluster::start().await;
        PgConnection::connect(&cluster.url("nvd")).await.unwrap();
        hold(cluster.pid(), cluster.dir());
    }
}

async fn start(options: Options) -> Cluster {
    Cluster::start(options).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn refusal(options: Options) -> EmbeddedError {
    Cluster::start(options).await.err().expect("the start is refused")
}

async fn connect(cluster: &Cluster) -> PgConnection {
    PgConnection::connect(&cluster.url("nvd")).await.unwrap()
}

async fn value(cluster: &Cluster, query: &'static str) -> String {
    let mut connection = connect(cluster).await;
    let value = sqlx::query_scalar(query).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    value
}

async fn store(cluster: &Cluster, text: &str) {
    let mut connection = connect(cluster).await;
    sqlx::query("CREATE TABLE kept (text text)").execute(&mut connection).await.unwrap();
    sqlx::query("INSERT INTO kept VALUES ($1)").bind(text).execute(&mut connection).await.unwrap();
}

async fn stored(cluster: &Cluster) -> String {
    value(cluster, "SELECT text FROM kept").await
}

fn postmaster_pid(dir: &Path) -> Option<u32> {
    fs::read_to_string(dir.join("postmaster.pid")).ok()?.lines().next()?.parse().ok()
}

fn send(pid: u32, signal: Signal) {
    // It may have ended by itself.
    let _ = kill(Pid::from_raw(pid.try_into().unwrap()), signal);
}

fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_root() -> bool {
    let root = geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can test this");
    }
    root
}

fn uid_of(user: &str) -> u32 {
    User::from_name(user).unwrap().unwrap().uid.as_raw()
}

fn owner_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().uid()
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The ids of the user and the groups of a process.
fn identity_of(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().filter(|line| line.starts_with("Uid:") || line.starts_with("Groups:")).collect()
}

#[tokio::test]
async fn a_fresh_server_takes_its_password_and_no_other() {
    let site = Site::new();
    let cluster = site.start().await;
    assert_eq!(value(&cluster, "SELECT current_user || '@' || current_database()").await, "nvd@nvd");

    let password_file = site.path().join("secrets/postgres_password");
    let password = fs::read_to_string(&password_file).unwrap();
    assert_eq!(password.trim().len(), 43);
    assert_eq!(mode_of(&password_file), 0o600);
    let wrong = cluster.url("nvd").replace(password.trim(), "wrong");
    let error = PgConnection::connect(&wrong).await.unwrap_err();
    assert!(error.to_string().contains("password authentication failed"), "{error}");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn nothing_but_the_database_and_its_locks_is_left_next_to_it() {
    let site = Site::new();
    site.start().await.stop().await.unwrap();
    let mut names: Vec<_> = fs::read_dir(site.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["postgres", "postgres.start.lock", "postgres.users.lock", "secrets"]);
}

#[tokio::test]
async fn data_survive_a_stop_and_a_start() {
    let site = Site::new();
    let first = site.start().await;
    let pid = first.pid();
    store(&first, "kept").await;
    first.stop().await.unwrap();
    wait_for("the server's end", || !runs(pid));

    let second = site.start().await;
    assert_eq!(stored(&second).await, "kept");
    second.stop().await.unwrap();
}

#[tokio::test]
async fn a_dropped_cluster_stops_its_server() {
    let site = Site::new();
    let cluster = site.start().await;
    let pid = cluster.pid();
    drop(cluster);
    wait_for("the server's end", || !runs(pid));
}

#[tokio::test]
async fn the_server_of_a_killed_process_is_found_running() {
    let site = Site::new();
    let holder = Holder::start("hold_a_cluster", site.path());
    let pid = holder.pid;
    holder.kill();
    assert!(runs(pid));

    let cluster = site.start().await;
    assert_eq!(cluster.pid(), pid);
    assert_eq!(value(&cluster, "SHOW port").await, cluster.port().to_string());
    cluster.stop().await.unwrap();
    wait_for("the server's end", || !runs(pid));
}

#[tokio::test]
async fn committed_data_survive_a_killed_server_which_comes_back_on_its_port() {
    let site = Site::new();
    let first = site.start().await;
    store(&first, "committed").await;
    let busy = connect(&first).await;
    send(first.pid(), Signal::SIGKILL);
    wait_for("the server's end", || !runs(first.pid()));

    let second = site.start().await;
    assert_ne!(second.pid(), first.pid());
    assert_eq!(second.port(), first.port());
    assert_eq!(stored(&second).await, "committed");
    drop(busy);
    first.stop().await.unwrap();
    assert_eq!(stored(&second).await, "committed");
    second.stop().await.unwrap();
}

#[tokio::test]
async fn everything_killed_at_once_recovers() {
    let site = Site::new();
    let holder = Holder::start("hold_a_cluster", site.path());
    let pid = holder.pid;
    holder.kill();
    send(pid, Signal::SIGKILL);
    let cluster = site.start().await;
    assert_ne!(cluster.pid(), pid);
    assert_eq!(value(&cluster, "SELECT 'well'").await, "well");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_process_that_took_over_the_number_of_a_dead_server_is_not_mistaken_for_it() {
    let site = Site::new();
    site.start().await.stop().await.unwrap();
    let mut alive = stranger("sleep 600");
    let mut unwaited = stranger("true");
    wait_for("its end", || !runs(unwaited.id()));
    for stranger in [&alive, &unwaited] {
        pretend_to_serve(stranger.id(), &site.path().join("postgres"));
        let cluster = site.start().await;
        assert_ne!(cluster.pid(), stranger.id());
        cluster.stop().await.unwrap();
    }
    assert!(alive.try_wait().unwrap().is_none(), "it lives on");
    alive.kill().unwrap();
    alive.wait().unwrap();
    unwaited.wait().unwrap();
}

#[tokio::test]
async fn a_server_of_another_container_is_named_and_left_alone() {
    // As containers have them: process ids and shared memory of their own.
    let contain = ["--pid", "--fork", "--kill-child", "--mount-proc", "--ipc"];
    if !Command::new("unshare").args(contain).arg("true").status().is_ok_and(|status| status.success()) {
        return eprintln!("not tested: containers need root's rights");
    }
    let site = Site::new();
    let mut program = Command::new("unshare");
    program.args(contain).arg(std::env::current_exe().unwrap());
    let elsewhere = Holder::spawn(program, "hold_a_cluster", site.path());
    let log = || fs::read_to_string(site.path().join("postgres/server.log")).unwrap();
    let before = log();
    let message = refusal(site.options()).await.to_string();
    assert!(message.contains("another container"), "{message}");
    assert_eq!(log(), before);
    elsewhere.kill();
    let cluster = site.start().await;
    assert_eq!(value(&cluster, "SELECT 'well'").await, "well");
    cluster.stop().await.unwrap();
}

/// A process of the user that runs PostgreSQL, which takes only such for servers.
fn stranger(script: &str) -> Child {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("exec {script}")]);
    if geteuid().is_root() {
        command.uid(uid_of("postgres"));
    }
    command.spawn().unwrap()
}

/// Writes what a killed server with that process id would have left.
fn pretend_to_serve(pid: u32, dir: &Path) {
    let file = dir.join("postmaster.pid");
    let left = format!("{pid}\n{}\n1700000000\n5432\n\n127.0.0.1\n1 1\nready\n", dir.display());
    fs::write(&file, left).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
}

#[tokio::test]
async fn the_last_of_two_users_stops_the_server() {
    let site = Site::new();
    let here = site.start().await;
    let elsewhere = Holder::start("hold_a_cluster", site.path());
    assert_eq!(elsewhere.pid, here.pid());
    let pid = here.pid();
    here.stop().await.unwrap();
    assert!(runs(pid));
    elsewhere.end();
    wait_for("the server's end", || !runs(pid));
}

#[tokio::test]
async fn two_users_in_one_process_count_as_two() {
    let site = Site::new();
    let (first, second) = (site.start().await, site.start().await);
    first.stop().await.unwrap();
    assert_eq!(value(&second, "SELECT 'still there'").await, "still there");
    second.stop().await.unwrap();
}

#[tokio::test]
async fn concurrent_starts_on_a_fresh_directory_share_one_server() {
    let site = Site::new();
    let path = site.path().to_owned();
    let elsewhere = tokio::task::spawn_blocking(move || Holder::start("hold_a_cluster", &path));
    let (first, second, elsewhere) = tokio::join!(site.start(), site.start(), elsewhere);
    let elsewhere = elsewhere.unwrap();
    assert_eq!([first.pid(), second.pid()], [elsewhere.pid; 2]);
    elsewhere.end();
    first.stop().await.unwrap();
    second.stop().await.unwrap();
}

#[tokio::test]
async fn a_start_that_is_killed_halfway_leaves_no_half_database() {
    let site = Site::new();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["hold_a_cluster", "--ignored"])
        .env("NVD_TEST_DIR", site.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let drafts = || {
        let names = fs::read_dir(site.path()).unwrap().map(|entry| entry.unwrap().path());
        names.filter(|path| path.to_string_lossy().contains(".new-")).collect::<Vec<_>>()
    };
    wait_for("initdb", || drafts().iter().any(|draft| draft.join("data/PG_VERSION").exists()));
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(!site.path().join("postgres").exists());

    let cluster = site.start().await;
    assert_eq!(value(&cluster, "SELECT 'whole'").await, "whole");
    cluster.stop().await.unwrap();
    // The killed process's initdb may still have been writing while the start above removed its draft.
    for _ in 0..10 {
        if drafts().is_empty() {
            return;
        }
        site.start().await.stop().await.unwrap();
    }
    panic!("a draft is never removed: {:?}", drafts());
}

#[tokio::test]
async fn what_was_acknowledged_is_on_disk_and_text_sorts_by_bytes() {
    let site = Site::new();
    let cluster = site.start().await;
    for (query, expected) in [
        ("SHOW fsync", "on"),
        ("SHOW synchronous_commit", "on"),
        ("SHOW full_page_writes", "on"),
        ("SHOW data_checksums", "on"),
        ("SHOW shared_buffers", "32MB"),
        ("SHOW max_wal_size", "4GB"),
        ("SHOW wal_buffers", "64MB"),
        ("SHOW server_encoding", "UTF8"),
        ("SELECT string_agg(t, '' ORDER BY t) FROM unnest(ARRAY['a', 'B', 'ä', '_']) t", "B_aä"),
    ] {
        assert_eq!(value(&cluster, query).await, expected, "{query}");
    }
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn settings_are_rewritten_at_each_start() {
    let site = Site::new();
    site.start().await.stop().await.unwrap();
    let cluster = start(Options { shared_buffers_mib: Some(48), ..site.options() }).await;
    assert_eq!(value(&cluster, "SHOW shared_buffers").await, "48MB");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn the_server_listens_on_the_loopback_address_only() {
    let site = Site::new();
    let cluster = site.start().await;
    assert_eq!(value(&cluster, "SHOW unix_socket_directories").await, "");
    assert!(TcpStream::connect(("127.0.0.1", cluster.port())).is_ok());
    for address in ["127.0.0.2", "::1"] {
        assert!(TcpStream::connect((address, cluster.port())).is_err(), "{address}");
    }
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn the_server_has_its_own_session_and_none_of_the_locks() {
    let site = Site::new();
    let cluster = site.start().await;
    let stat = fs::read_to_string(format!("/proc/{}/stat", cluster.pid())).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().to_owned();
    assert_eq!(session, cluster.pid().to_string());

    let open = fs::read_dir(format!("/proc/{}/fd", cluster.pid())).unwrap();
    let open: Vec<_> = open.filter_map(|file| fs::read_link(file.unwrap().path()).ok()).collect();
    assert!(open.iter().any(|file| file.ends_with("server.log")), "{open:?}");
    assert!(!open.iter().any(|file| file.to_string_lossy().ends_with(".lock")), "{open:?}");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn for_root_the_server_runs_as_postgres_and_owns_its_files() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    let cluster = site.start().await;
    let postgres = uid_of("postgres");
    assert_eq!(owner_of(cluster.dir()), postgres);
    assert_eq!(mode_of(cluster.dir()), 0o700);
    for name in ["PG_VERSION", "nvd.conf", "server.log", "postgresql.conf"] {
        assert_eq!(owner_of(&cluster.dir().join(name)), postgres, "{name}");
    }
    let ids = [postgres; 4].map(|id| id.to_string()).join("\t");
    assert_eq!(identity_of(cluster.pid()).trim(), format!("Uid:\t{ids}Groups:"));
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn for_root_the_server_runs_as_nobody_too_and_later_as_the_owner_of_its_files() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    let cluster = start(Options { user: Some("nobody".into()), ..site.options() }).await;
    assert_eq!(owner_of(cluster.dir()), uid_of("nobody"));
    store(&cluster, "nobody's").await;
    cluster.stop().await.unwrap();

    let cluster = site.start().await;
    assert_eq!(owner_of(cluster.dir()), uid_of("nobody"));
    assert_eq!(stored(&cluster).await, "nobody's");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn for_root_a_database_that_root_restored_is_given_to_its_user() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    let cluster = site.start().await;
    store(&cluster, "restored").await;
    let dir = cluster.dir().to_owned();
    cluster.stop().await.unwrap();
    assert!(Command::new("chown").args(["-R", "root:root"]).arg(&dir).status().unwrap().success());
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();

    let cluster = site.start().await;
    assert_eq!(stored(&cluster).await, "restored");
    assert_eq!((owner_of(&dir.join("base")), mode_of(&dir)), (uid_of("postgres"), 0o700));
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn for_root_a_directory_its_user_cannot_reach_becomes_a_link_to_one_that_it_can() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    fs::set_permissions(site.path(), Permissions::from_mode(0o700)).unwrap();
    let first = site.start().await;
    let dir = first.dir().to_owned();
    assert!(dir.starts_with("/var/lib/nvd-support-car"), "{}", dir.display());
    assert_eq!(fs::read_link(site.path().join("postgres")).unwrap(), dir);
    store(&first, "elsewhere").await;
    first.stop().await.unwrap();

    let second = site.start().await;
    assert_eq!(second.dir(), dir);
    assert_eq!(stored(&second).await, "elsewhere");
    second.stop().await.unwrap();
    fs::remove_dir_all(dir.parent().unwrap()).unwrap();
    // Only if this test made it.
    let _ = fs::remove_dir("/var/lib/nvd-support-car");
}

#[test]
fn for_root_without_the_right_to_look_at_processes_of_others_it_starts_and_stops() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    for _ in 0..2 {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-sys_ptrace", env!("CARGO_BIN_EXE_nvd-support-car"), "--data-dir"]);
        let output = command.arg(site.path()).args(["datasets", "plan"]).output().expect("setpriv");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(postmaster_pid(&site.path().join("postgres")), None, "the server was left running");
    }
}

#[tokio::test]
async fn for_others_than_root_another_users_directory_is_refused() {
    if geteuid().is_root() {
        eprintln!("skipped: root can test this in no directory");
        return;
    }
    let site = Site::new();
    let message = refusal(Options { dir: "/etc".into(), ..site.options() }).await.to_string();
    assert!(message.contains("/etc belongs to user 0"), "{message}");
}

#[tokio::test]
#[ignore = "takes half a minute"]
async fn a_running_server_that_does_not_answer_is_replaced() {
    let site = Site::new();
    let holder = Holder::start("hold_a_cluster", site.path());
    let pid = holder.pid;
    holder.kill();
    let pid_file = site.path().join("postgres/postmaster.pid");
    let mut lines: Vec<_> = fs::read_to_string(&pid_file).unwrap().lines().map(str::to_owned).collect();
    lines[3] = "1".into();
    fs::write(&pid_file, lines.join("\n") + "\n").unwrap();

    let cluster = site.start().await;
    wait_for("the server's end", || !runs(pid));
    assert_eq!(value(&cluster, "SELECT 'well'").await, "well");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_directory_with_other_files_in_it_is_left_alone() {
    let site = Site::new();
    let dir = site.path().join("postgres");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("thesis.txt"), "precious").unwrap();
    let error = refusal(site.options()).await;
    assert!(matches!(error, EmbeddedError::NotADatabase { .. }), "{error}");
    assert_eq!(fs::read_to_string(dir.join("thesis.txt")).unwrap(), "precious");
}

#[tokio::test]
async fn a_lost_password_is_named_with_its_file() {
    let site = Site::new();
    site.start().await.stop().await.unwrap();
    fs::remove_file(site.path().join("secrets/postgres_password")).unwrap();
    let message = refusal(site.options()).await.to_string();
    assert!(message.contains("secrets/postgres_password"), "{message}");
}

#[tokio::test]
async fn a_failed_start_shows_what_the_server_logged() {
    let site = Site::new();
    site.start().await.stop().await.unwrap();
    let main_file = site.path().join("postgres/postgresql.conf");
    let settings = fs::read_to_string(&main_file).unwrap();
    fs::write(&main_file, format!("{settings}\nmax_connections = many\n")).unwrap();
    let message = refusal(site.options()).await.to_string();
    assert!(message.contains("`pg_ctl start` failed") && message.contains("max_connections"), "{message}");
}

#[tokio::test]
async fn an_absent_postgresql_that_cannot_be_fetched_is_answered_with_how_to_install_it() {
    let site = Site::new();
    let search = Search { path: "".into(), root: site.path().into() };
    let message = refusal(Options { search, ..site.options() }).await.to_string();
    println!("{message}");
    for part in [
        "PostgreSQL 14 or newer was not found",
        "could not be fetched from GitHub: ",
        "`apt-get install postgresql`",
        "`dnf install postgresql-server`",
        "`brew install postgresql@17`",
        "DATABASE_URL",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

/// A directory with programs that say they are of that version.
fn fake_programs(dir: &Path, version: &str) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    for name in ["postgres", "initdb", "pg_ctl"] {
        let program = dir.join(name);
        fs::write(&program, format!("#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    }
    dir.to_owned()
}

async fn found(search: &Search, cache: &Path, wanted: Wanted) -> PathBuf {
    let account = Account::for_database(Path::new("/nowhere"), None).unwrap();
    Binaries::find(search, cache, wanted, account).await.unwrap().dir().to_owned()
}

#[tokio::test]
async fn programs_are_looked_for_on_the_path_then_in_the_usual_places_then_among_fetched_ones() {
    let site = Site::new();
    let (root, cache, on_path) = (site.path().join("root"), site.path().join("cache"), site.path().join("path"));
    let newest = Wanted::AtLeast(OLDEST_MAJOR);
    let mut search = Search { path: on_path.clone().into(), root: root.clone() };

    let fetched = fake_programs(&cache.join("16.9.0/bin"), "16.9");
    assert_eq!(found(&search, &cache, newest).await, fetched);

    fake_programs(&root.join("usr/lib/postgresql/13/bin"), "13.1");
    assert_eq!(found(&search, &cache, newest).await, fetched, "13 is too old");
    let fourteen = fake_programs(&root.join("usr/lib/postgresql/14/bin"), "14.1");
    let hundred = fake_programs(&root.join("usr/lib/postgresql/100/bin"), "100.1");
    assert_eq!(found(&search, &cache, newest).await, hundred);
    assert_eq!(found(&search, &cache, Wanted::Exactly(14)).await, fourteen);

    fs::create_dir(&on_path).unwrap();
    fs::write(on_path.join("postgres"), "alone, without initdb and pg_ctl").unwrap();
    assert_eq!(found(&search, &cache, newest).await, hundred);
    fs::remove_file(on_path.join("postgres")).unwrap();
    std::os::unix::fs::symlink(fourteen.join("postgres"), on_path.join("postgres")).unwrap();
    assert_eq!(found(&search, &cache, newest).await, fourteen, "links are followed");

    let configured = fake_programs(&site.path().join("configured"), "15.3");
    fs::remove_file(on_path.join("postgres")).unwrap();
    fs::write(on_path.join("pg_config"), format!("#!/bin/sh\necho '{}'\n", configured.display())).unwrap();
    fs::set_permissions(on_path.join("pg_config"), Permissions::from_mode(0o755)).unwrap();
    assert_eq!(found(&search, &cache, newest).await, configured);
    search.path.clear();
    assert_eq!(found(&search, &cache, newest).await, hundred);
}

#[tokio::test]
async fn an_ephemeral_server_and_its_files_are_gone_after_its_process_is_killed() {
    let holder = Holder::start("hold_an_ephemeral_one", Path::new(""));
    let (pid, dir) = (holder.pid, holder.dir.clone());
    let home = dir.parent().unwrap().to_owned();
    assert!(runs(pid) && dir.exists());
    holder.kill();
    wait_for("the server's end", || !runs(pid));
    wait_for("the removal of its files", || !home.exists());
}

#[tokio::test]
async fn an_ephemeral_server_and_its_files_are_gone_after_its_process_has_ended() {
    let holder = Holder::start("hold_an_ephemeral_one", Path::new(""));
    let (pid, home) = (holder.pid, holder.dir.parent().unwrap().to_owned());
    holder.end();
    wait_for("the server's end", || !runs(pid));
    wait_for("the removal of its files", || !home.exists());
}
