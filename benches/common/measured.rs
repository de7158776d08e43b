//! What is told of several measurements.

/// From the least to the most.
pub fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The one in the middle, or the mean of the two that are.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let (below, above) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    f64::midpoint(below, above)
}

/// Median, least and most, such as `2.20 (2.11 to 2.40)`.
pub fn spread(values: &[f64], digits: usize) -> String {
    let sorted = sorted(values);
    let (least, most) = (sorted[0], sorted[sorted.len() - 1]);
    format!("{:.digits$} ({least:.digits$} to {most:.digits$})", median(values))
}
