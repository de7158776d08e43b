//! Making a database directory: `initdb`, the service's database, and a rename that makes both
//! appear at once.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::server::{NAME, SETTINGS_FILE, Server};
use super::{EmbeddedError, Result, password};

impl Server {
    /// Makes the database unless it is there: a cluster with the superuser and the database
    /// [`NAME`]. Killed at any moment, it leaves either no database or a whole one.
    pub fn create(&self, password: &str) -> Result<()> {
        self.remove_drafts();
        if !self.exists() {
            if fs::read_dir(&self.dir).is_ok_and(|mut entries| entries.next().is_some()) {
                return Err(EmbeddedError::NotADatabase { dir: self.dir.clone() });
            }
            let draft = self.draft()?;
            let created = self.create_in(&draft, password);
            let removed = fs::remove_dir_all(&draft);
            created?;
            removed.map_err(EmbeddedError::io("remove", &draft))?;
        }
        self.account.make_private_dir(&self.dir)
    }

    /// Whether the directory holds a database.
    pub fn exists(&self) -> bool {
        self.dir.join("PG_VERSION").exists()
    }

    /// Each attempt has a directory of its own, for the `initdb` of a killed one may still run.
    fn draft(&self) -> Result<PathBuf> {
        let random = password::random_text::<9>().map_err(EmbeddedError::io("name a draft of", &self.dir))?;
        Ok(sibling(&self.dir, &format!(".new-{random}")))
    }

    fn create_in(&self, draft: &Path, password: &str) -> Result<()> {
        let (data, password_file) = (draft.join("data"), draft.join("password"));
        self.account.make_private_dir(draft)?;
        fs::write(&password_file, password).map_err(EmbeddedError::io("write", &password_file))?;
        self.account.own(draft)?;
        self.run_initdb(&data, &password_file)?;
        self.create_database(&data)?;
        include_settings(&data).map_err(EmbeddedError::io("configure the database in", &data))?;
        fs::rename(&data, &self.dir)
            .and_then(|()| sync(self.dir.parent().unwrap_or(&self.dir)))
            .map_err(EmbeddedError::io("create the directory", &self.dir))
    }

    /// With the locale C text sorts by its bytes, on all systems alike, and fastest.
    fn run_initdb(&self, data: &Path, password_file: &Path) -> Result<()> {
        let mut initdb = self.program("initdb");
        initdb
            .args(["--username", NAME, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"])
            .args(["--data-checksums", "--no-instructions", "--pwfile"])
            .arg(password_file)
            .arg("--pgdata")
            .arg(data);
        self.run("initdb", initdb, String::new)
    }

    /// In single-user mode, since neither a server nor `psql` is at hand.
    fn create_database(&self, data: &Path) -> Result<()> {
        let statement = statement(&format!("CREATE DATABASE {NAME};\n"));
        let mut postgres = self.program("postgres");
        postgres
            .args(["--single", "-c", "exit_on_error=on", "-D"])
            .arg(data)
            .arg("postgres")
            .stdin(statement.map_err(EmbeddedError::io("create a pipe for", data))?);
        self.run("postgres --single", postgres, String::new)
    }

    /// Killed attempts leave these. One that cannot be removed does no harm.
    fn remove_drafts(&self) {
        let prefix = sibling(&self.dir, ".new-");
        let entries = self.dir.parent().and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten();
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.as_os_str().as_encoded_bytes().starts_with(prefix.as_os_str().as_encoded_bytes()) {
                fs::remove_dir_all(&path)
                    .unwrap_or_else(|error| tracing::debug!(path = %path.display(), %error, "left"));
            }
        }
    }
}

/// The path of a file next to `dir`, with the same name and `suffix`.
pub fn sibling(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    dir.with_file_name(name)
}

/// A program's input that holds just `text`, which is shorter than what a pipe takes.
fn statement(text: &str) -> io::Result<io::PipeReader> {
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(text.as_bytes())?;
    Ok(reader)
}

fn include_settings(data: &Path) -> io::Result<()> {
    let mut main_file = File::options().append(true).open(data.join("postgresql.conf"))?;
    writeln!(main_file, "include '{SETTINGS_FILE}'")
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
