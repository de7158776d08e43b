//! What the user sees: a bar on a terminal, and a line for each file.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};

/// Says what happens. The results of files go to standard output, everything else to standard error.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A view of the sending of that many files. Without a terminal, there is no bar.
    #[must_use]
    pub fn new(files: usize) -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(files as u64) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("[{bar:30}] {pos}/{len} files  {msg}") {
            bar.set_style(style);
        }
        bar.tick();
        Self { bar }
    }

    /// Names the file that is checked.
    pub fn checking(&self, name: &str) {
        self.bar.set_message(format!("checking {name}"));
    }

    /// Says how much of a file has been sent.
    pub fn sent(&self, name: &str, bytes: u64) {
        self.bar.set_message(format!("sending {name}, {}", bytesize::ByteSize(bytes)));
    }

    /// One file is done.
    pub fn file_done(&self) {
        self.bar.inc(1);
    }

    /// A line about a result.
    pub fn say(&self, line: &str) {
        // Whoever closed the pipe does not want to read it.
        self.bar.suspend(|| drop(writeln!(std::io::stdout(), "{line}")));
    }

    /// A line about trouble.
    pub fn warn(&self, line: &str) {
        self.bar.suspend(|| drop(writeln!(std::io::stderr(), "{line}")));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
