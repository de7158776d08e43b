//! The files that are converted: what the arguments stand for, and the day of each.

use std::path::{Path, PathBuf};

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};

use crate::send::files;

/// One file.
#[derive(Debug, Clone)]
pub struct Input {
    /// Its name as it was given, which tells its day, its dataset and its form.
    pub name: String,
    /// Where it lies, which a link leads to.
    pub path: PathBuf,
    /// Its size as it is.
    pub bytes: u64,
    /// The date in its name, else the day of its last change in UTC.
    pub day: NaiveDate,
    is_dated: bool,
    changed: DateTime<Utc>,
}

/// Which of the files are converted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Choice {
    /// Those of that day only.
    pub date: Option<NaiveDate>,
    /// All that a pattern matches, not only those of the newest date in their names.
    pub historical: bool,
}

/// What the arguments stand for.
#[derive(Debug, Default)]
pub struct Found {
    /// The files, in the order of the arguments.
    pub inputs: Vec<Input>,
    /// Files that the choice leaves out.
    pub left_out: usize,
    /// Arguments that stand for nothing, each with the reason.
    pub faults: Vec<String>,
}

/// Looks for the files. What cannot be read stops none of the others.
#[must_use]
pub fn find(arguments: &[String], choice: Choice) -> Found {
    let mut found = Found::default();
    for argument in arguments {
        let names = match files::expand(std::slice::from_ref(argument)) {
            Ok(names) => names,
            Err(refusal) => {
                found.faults.extend(refusal.lines);
                continue;
            }
        };
        let is_pattern = names != [argument.as_str()];
        let mut inputs = Vec::new();
        for name in names {
            match Input::open(&name) {
                Ok(input) => inputs.push(input),
                Err(error) => found.faults.push(format!("{name}: cannot be read: {error}")),
            }
        }
        let newest = inputs.iter().filter(|input| input.is_dated).map(|input| input.day).max();
        for input in inputs {
            let is_wanted = match choice.date {
                Some(date) => input.day == date,
                None => choice.historical || !is_pattern || !input.is_dated || Some(input.day) == newest,
            };
            let is_known = found.inputs.iter().any(|known| known.path == input.path);
            match (is_wanted, is_known) {
                (false, _) => found.left_out += 1,
                (true, false) => found.inputs.push(input),
                (true, true) => {}
            }
        }
    }
    found
}

impl Input {
    fn open(name: &str) -> std::io::Result<Self> {
        let path = Path::new(name).canonicalize()?;
        let metadata = path.metadata()?;
        if metadata.is_dir() {
            return Err(std::io::Error::other("it is a folder: name its files, such as 'FOLDER/*.csv'"));
        }
        if !metadata.is_file() {
            return Err(std::io::Error::other("it is no regular file, which can be read several times"));
        }
        let date = date(&file_name(name)).map(|(_, _, date)| date);
        let changed: DateTime<Utc> = metadata.modified()?.into();
        Ok(Self {
            name: name.to_owned(),
            bytes: metadata.len(),
            day: date.unwrap_or_else(|| changed.date_naive()),
            is_dated: date.is_some(),
            changed,
            path,
        })
    }

    /// Whether the file is as it was found.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        Self::open(&self.name).is_ok_and(|now| (now.bytes, now.changed) == (self.bytes, self.changed))
    }

    /// When its day begins.
    #[must_use]
    pub fn midnight(&self) -> DateTime<Utc> {
        self.day.and_time(NaiveTime::MIN).and_utc()
    }

    /// The name of a dataset for files of its kind: its own name without date and endings.
    #[must_use]
    pub fn stem(&self) -> String {
        let name = file_name(&self.name);
        let name = match date(&name) {
            Some((start, end, _)) => format!("{}{}", &name[..start], &name[end..]),
            None => name,
        };
        name.split('.').find(|part| !part.is_empty()).unwrap_or_default().trim_matches(['_', '-', ' ']).to_owned()
    }
}

fn file_name(name: &str) -> String {
    Path::new(name).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The last date that stands by itself in a name, as 20251028, 2025-10-28 or 2025_10_28, and where it stands.
fn date(name: &str) -> Option<(usize, usize, NaiveDate)> {
    let is_free = |byte: Option<&u8>| byte.is_none_or(|byte| !byte.is_ascii_alphanumeric());
    let bytes = name.as_bytes();
    (0..bytes.len()).rev().find_map(|start| {
        [("%Y%m%d", 8), ("%Y-%m-%d", 10), ("%Y_%m_%d", 10)].into_iter().find_map(|(format, length)| {
            let end = start + length;
            let text = name.get(start..end)?;
            let stands_alone = is_free(start.checked_sub(1).and_then(|before| bytes.get(before)));
            let is_date = text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'_'));
            if !stands_alone || !is_free(bytes.get(end)) || !is_date {
                return None;
            }
            NaiveDate::parse_from_str(text, format).ok().map(|date| (start, end, date))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_in_names_are_found_and_numbers_are_not_taken_for_dates() {
        let day = |text: &str| text.parse::<NaiveDate>().ok();
        for (name, found) in [
            ("query_perf_daily_20251028.csv", day("2025-10-28")),
            ("2025-10-28.report.json.gz", day("2025-10-28")),
            ("a_20240101_b_2025_10_28.tsv", day("2025-10-28")),
            ("20250230.csv", None),
            ("SRR12689945.tsv", None),
            ("SRR20251028.tsv", None),
            ("report_120251028.csv", None),
            ("report_202543.csv", None),
            ("ünï.csv", None),
        ] {
            assert_eq!(date(name).map(|(_, _, date)| date), found, "{name}");
        }
    }
}
