//! What an unknown key may have been meant to be.

/// Edits that still count as a slip of the fingers; two letters swapped are two edits.
const SLIP: usize = 2;

/// The known key most like `key`: one with nearly the same last part, in the most similar section.
pub(super) fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|known| (distance(name(known), name(key)), distance(known, key), known))
        .filter(|(slips, ..)| *slips <= SLIP)
        .min()
        .map(|(.., known)| known)
}

fn name(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// The Levenshtein distance, kept as one row of its table.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (line, a) in from.chars().enumerate() {
        let mut diagonal = line;
        row[0] = line + 1;
        for (column, b) in to.chars().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[row.len() - 1]
}
