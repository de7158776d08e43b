//! Where results lie in a folder of runs, and what their paths say.

use std::collections::HashMap;
use std::fmt;

/// Where NVD lays results, by release. What is before a `|` is taken in place of what comes after it.
const NVD: [(&str, &str); 5] = [
    (SKIP, "{run}/**/gottcha2/01_gottcha2_profiles/{sample}.lineage.tsv"),
    // A sample without hits has no .full.tsv.
    (
        "gottcha2",
        "{run}/**/gottcha2/01_gottcha2_profiles/{sample}.full.tsv | \
         {run}/**/gottcha2/01_gottcha2_profiles/{sample}.tsv",
    ),
    (
        "stast",
        "{run}/**/nvd/03_megablast_classification/01_annotated_megablast_classifications/\
         {sample}.annotated_megablast.txt",
    ),
    (
        "stast",
        "{run}/**/nvd/04_blastn_classification/01_annotated_blastn_classifications/{sample}.annotated_blastn.txt",
    ),
    (
        "nvd_blast",
        "{run}/**/nvd/07_merged_blast_results/final/{sample}_blast.final.tsv | \
         {run}/**/nvd/07_merged_blast_results/lca_annotated/{sample}_blast.merged_with_lca.tsv | \
         {run}/**/nvd/04_blastn_classification/03_blastn_megablast_merged/{sample}_blast.merged_with_lca.tsv",
    ),
];

/// In place of a dataset: files that no later rule takes.
const SKIP: &str = "skip";

/// What a path can say, and the column that it fills.
const PLACEHOLDERS: [(&str, &str); 3] = [("run", "run_id"), ("sample", "sample_id"), ("experiment", "experiment")];

/// Columns and their values.
pub type Columns = Vec<(String, String)>;

/// Rules that tell results from other files, the first that fits decides.
#[derive(Debug, Clone)]
pub struct Layout {
    rules: Vec<Rule>,
}

/// Files of one dataset. Of one sample of one run only the first pattern that finds anything counts.
#[derive(Debug, Clone)]
struct Rule {
    dataset: String,
    patterns: Vec<String>,
}

/// A result file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Find {
    /// Its path below the folder.
    pub file: String,
    /// Where its rows belong.
    pub dataset: String,
    /// What its path says: columns and their values.
    pub columns: Columns,
}

impl Layout {
    /// The layout of NVD's results, releases 2 and 3. The folders right below are runs; of a single run they are not.
    #[must_use]
    pub fn nvd(is_single_run: bool) -> Self {
        let pattern = |text: &str| {
            let text = text.trim();
            text.strip_prefix("{run}/").filter(|_| is_single_run).unwrap_or(text).to_owned()
        };
        let rules = NVD.iter().map(|(dataset, patterns)| Rule {
            dataset: (*dataset).to_owned(),
            patterns: patterns.split('|').map(pattern).collect(),
        });
        Self { rules: rules.collect() }
    }

    /// A layout from rules `DATASET=PATTERN | PATTERN ...`.
    ///
    /// # Errors
    /// What is wrong with a rule.
    pub fn parse(rules: &[String]) -> Result<Self, String> {
        let rules = rules.iter().map(|text| {
            let wrong = |reason: &str| format!("`{text}` {reason}");
            let (dataset, patterns) = text.split_once('=').ok_or_else(|| wrong("is not DATASET=PATTERN"))?;
            let patterns: Vec<String> = patterns.split('|').map(|pattern| pattern.trim().to_owned()).collect();
            for name in patterns.iter().flat_map(|pattern| pattern.split('{').skip(1)) {
                let Some((name, _)) = name.split_once('}') else { return Err(wrong("has a { without its }")) };
                if !PLACEHOLDERS.iter().any(|(known, _)| *known == name) {
                    return Err(wrong(&format!("names {{{name}}}: there are {{run}}, {{sample}} and {{experiment}}")));
                }
            }
            Ok(Rule { dataset: dataset.trim().to_owned(), patterns })
        });
        Ok(Self { rules: rules.collect::<Result<_, _>>()? })
    }

    /// The datasets that the rules name.
    pub fn datasets(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| rule.dataset.as_str()).filter(|dataset| *dataset != SKIP)
    }

    /// The results among these paths. Endings `.gz` and `.zst` are not looked at.
    #[must_use]
    pub fn choose(&self, files: &[String]) -> Vec<Find> {
        let found: Vec<(usize, usize, Find)> = files.iter().filter_map(|file| self.find(file)).collect();
        let mut first: HashMap<(usize, &Columns), usize> = HashMap::new();
        for (rule, rank, find) in &found {
            let best = first.entry((*rule, &find.columns)).or_insert(*rank);
            *best = (*best).min(*rank);
        }
        let chosen = found.iter().filter(|(rule, rank, find)| first[&(*rule, &find.columns)] == *rank);
        chosen.map(|(_, _, find)| find.clone()).filter(|find| find.dataset != SKIP).collect()
    }

    fn find(&self, file: &str) -> Option<(usize, usize, Find)> {
        let name = [".gz", ".zst"].iter().find_map(|ending| file.strip_suffix(ending)).unwrap_or(file);
        let path: Vec<&str> = name.split('/').collect();
        self.rules.iter().enumerate().find_map(|(index, rule)| {
            rule.patterns.iter().enumerate().find_map(|(rank, pattern)| {
                let pattern: Vec<&str> = pattern.split('/').collect();
                let columns = agreed(match_path(&pattern, &path)?)?;
                Some((index, rank, Find { file: file.to_owned(), dataset: rule.dataset.clone(), columns }))
            })
        })
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, rule) in self.rules.iter().enumerate() {
            let end = if index + 1 < self.rules.len() { "\n" } else { "" };
            write!(out, "{}={}{end}", rule.dataset, rule.patterns.join(" | "))?;
        }
        Ok(())
    }
}

/// The columns, each once; `None` where a placeholder that stands twice has found two values.
fn agreed(columns: Columns) -> Option<Columns> {
    let mut agreed = Columns::new();
    for (column, value) in columns {
        match agreed.iter().find(|(known, _)| *known == column) {
            None => agreed.push((column, value)),
            Some((_, other)) if *other == value => {}
            Some(_) => return None,
        }
    }
    Some(agreed)
}

/// Matches folder by folder; `**` stands for any number of them.
fn match_path(pattern: &[&str], path: &[&str]) -> Option<Columns> {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => Some(Vec::new()),
        (Some((&"**", rest)), _) => {
            (0..=path.len()).find_map(|skipped| match_path(rest, path.get(skipped..).unwrap_or_default()))
        }
        (Some((first, rest)), Some((name, below))) => {
            let mut columns = match_name(first, name)?;
            columns.extend(match_path(rest, below)?);
            Some(columns)
        }
        _ => None,
    }
}

/// Matches one name; `*` stands for any text, `{run}` for text that says the run.
fn match_name(pattern: &str, name: &str) -> Option<Columns> {
    let Some(start) = pattern.find(['*', '{']) else { return (pattern == name).then(Vec::new) };
    let (literal, rest) = pattern.split_at(start);
    let name = name.strip_prefix(literal)?;
    let (column, rest) = match rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
        Some((placeholder, rest)) => {
            (PLACEHOLDERS.iter().find(|(known, _)| *known == placeholder).map(|(_, column)| *column), rest)
        }
        None => (None, rest.strip_prefix('*')?),
    };
    // The longest text first, and none for a value.
    let ends = name.char_indices().map(|(end, _)| end).chain([name.len()]).rev();
    ends.filter(|end| column.is_none() || *end > 0).find_map(|end| {
        let (text, after) = name.split_at(end);
        let mut columns = match_name(rest, after)?;
        if let Some(column) = column {
            columns.insert(0, (column.to_owned(), text.to_owned()));
        }
        Some(columns)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(layout: &Layout, files: &[&str]) -> Vec<String> {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        let told = |find: Find| {
            let columns: Vec<String> = find.columns.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("{} {} {}", find.dataset, find.file, columns.join(" "))
        };
        layout.choose(&files).into_iter().map(told).collect()
    }

    #[test]
    fn a_full_report_is_taken_in_place_of_a_summary_which_stands_alone_for_a_sample_without_hits() {
        let profiles = "r1/results/gottcha2/01_gottcha2_profiles";
        let files = ["A.1.full.tsv.gz", "A.1.lineage.tsv", "A.1.tsv", "W.tsv"].map(|name| format!("{profiles}/{name}"));
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        assert_eq!(
            chosen(&Layout::nvd(false), &files),
            [
                format!("gottcha2 {profiles}/A.1.full.tsv.gz run_id=r1 sample_id=A.1"),
                format!("gottcha2 {profiles}/W.tsv run_id=r1 sample_id=W"),
            ]
        );
    }

    #[test]
    fn of_a_single_run_the_folders_below_are_no_runs() {
        let file = "nvd/04_blastn_classification/01_annotated_blastn_classifications/S1.annotated_blastn.txt";
        assert_eq!(chosen(&Layout::nvd(true), &[file]), [format!("stast {file} sample_id=S1")]);
        assert!(chosen(&Layout::nvd(false), &[file]).is_empty());
    }

    #[test]
    fn a_placeholder_that_stands_twice_stands_for_one_value() {
        let layout = Layout::parse(&["gottcha2={run}/{sample}/{sample}.full.tsv".into()]).expect("rules");
        let found = chosen(&layout, &["r1/S1/S1.full.tsv", "r1/S2/other.full.tsv"]);
        assert_eq!(found, ["gottcha2 r1/S1/S1.full.tsv run_id=r1 sample_id=S1"]);
        let Err(reason) = Layout::parse(&["gottcha2={run/x.tsv".into()]) else { panic!("no pattern") };
        assert!(reason.contains("without its }"), "{reason}");
    }

    #[test]
    fn patterns_of_ones_own_say_what_they_find() {
        let layout =
            Layout::parse(&["gottcha2=labkey/{experiment}/{sample}/**/*.full.tsv".to_owned()]).expect("layout");
        let file = "labkey/7/S1/gottcha2/x/y.full.tsv";
        assert_eq!(chosen(&layout, &[file, "labkey/7/S1"]), [format!("gottcha2 {file} experiment=7 sample_id=S1")]);
        assert!(Layout::parse(&["gottcha2".to_owned()]).is_err());
        assert!(Layout::parse(&["gottcha2={person}/*".to_owned()]).expect_err("name").contains("{person}"));
    }
}
