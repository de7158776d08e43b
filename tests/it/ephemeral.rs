//! A PostgreSQL for a test binary alone, which is gone when the test process is, however it ends.
//!
//! A watchdog process waits for the end of a pipe whose other end only the test process holds. The
//! system closes that end even when the process is killed; then the watchdog stops the server and
//! removes its files.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nvd_support_car::db::embedded::{Cluster, Options};

/// Waits for the end of its input, then stops the server below `$0` and removes that directory.
/// Repeatedly, for the test may have been killed while `initdb` or a start was under way.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
cat > /dev/null
for attempt in 1 2 3 4 5 6 7 8 9 10; do
    data=$(cd "$0/postgres" && pwd -P) && pid=$(head -n 1 "$data/postmaster.pid") && kill -QUIT "$pid"
    while [ -n "$pid" ] && kill -0 "$pid"; do sleep 0.1; done
    case $data in
        "$0"/*) ;;
        /var/lib/nvd-support-car/?*/postgres) rm -rf "${data%/postgres}" ;;
    esac
    rm -rf "$0" && sleep 0.3 && [ ! -e "$0" ] && exit
done
"#;

/// A fresh database server; keep it for as long as the tests need it, for example in a `static`.
pub struct EphemeralCluster {
    cluster: Cluster,
    /// Holds the pipe's other end, which the system closes when this process ends.
    _watchdog: Child,
}

impl EphemeralCluster {
    /// Starts a server in a fresh directory.
    pub async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("nvd-test-").tempdir().unwrap().keep();
        let watchdog = watch(&dir);
        // Enterable for the user that runs PostgreSQL when the tests run as root.
        fs::set_permissions(&dir, Permissions::from_mode(0o711)).unwrap();
        let options = Options { shared_buffers_mib: Some(64), ..Options::below(&dir) };
        let cluster = Cluster::start(options).await.unwrap_or_else(|error| panic!("{error}"));
        Self { cluster, _watchdog: watchdog }
    }

    /// The URL of a database; `nvd` is there already.
    pub fn url(&self, database: &str) -> String {
        self.cluster.url(database)
    }

    /// The server's own directory.
    pub fn dir(&self) -> &Path {
        self.cluster.dir()
    }

    /// The process id of the server's main process.
    pub fn pid(&self) -> u32 {
        self.cluster.pid()
    }
}

/// Starts the watchdog, out of reach of a Ctrl-C. It waits for as long as what this returns is
/// kept.
fn watch(dir: &Path) -> Child {
    Command::new("/bin/sh")
        .args(["-c", WATCHDOG])
        .arg(dir)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap()
}
