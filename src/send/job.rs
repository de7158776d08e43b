//! The HTCondor job that this runs in, if any: its name makes keys that stay the same when it starts again.

use std::path::{Path, PathBuf};

/// A running job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    id: String,
}

impl Job {
    /// The job whose description `_CONDOR_JOB_AD` names.
    #[must_use]
    pub fn current() -> Option<Self> {
        let ad = PathBuf::from(std::env::var_os("_CONDOR_JOB_AD")?);
        let text = std::fs::read(ad).ok()?;
        Self::parse(&String::from_utf8_lossy(&text))
    }

    fn parse(ad: &str) -> Option<Self> {
        let value = ad.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            name.trim().eq_ignore_ascii_case("GlobalJobId").then(|| value.trim())
        })?;
        let id = value.strip_prefix('"')?.strip_suffix('"')?;
        (!id.is_empty()).then(|| Self { id: id.to_owned() })
    }

    /// The key of a file of this job. Standard input has no name, so its content has to be its key.
    #[must_use]
    pub fn key(&self, argument: &str) -> Option<String> {
        let name = Path::new(argument).file_name()?.to_str()?;
        (argument != super::content::STDIN).then(|| format!("{}/{name}", self.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_the_job_and_the_name_of_the_file() {
        let job = Job::parse("Owner = \"nvd\"\nGlobalJobId = \"submit-1#152.3#1358363336\"\n").expect("job");
        assert_eq!(job.key("out/a.tsv").expect("key"), "submit-1#152.3#1358363336/a.tsv");
        assert_eq!(job.key("-"), None);
        assert_eq!(Job::parse("GlobalJobId = undefined\n"), None);
    }
}
