//! Filters as users write them: `date_from`, `date_to`, and values of columns.

use std::collections::BTreeMap;

use chrono::{DateTime, Days, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use serde_json::{Map, Value};

use super::spec::{ExportSpec, FilterValue};
use crate::dataset::Fault;
use crate::dataset::kind::in_calendar;

/// What a time has to look like.
const EXPECTED: &str = "must be a date such as 2026-01-31, or a time such as 2026-01-31T08:00:00Z";

/// Which rows of a table: `date_from` and `date_to` choose them by the time of storing; every other name is a column, whose
/// value must be equal.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"date_from": "2026-01-01", "date_to": "2026-01-31", "sample_id": "SRR12689945"}))]
#[expect(dead_code, reason = "describes the JSON that `ExportSpec::filter_by` reads")]
pub struct RowFilter {
    /// Rows stored then or later: a time, or a date for the beginning of that day in UTC. The time of a row is when storing
    /// it began, and it is seen when that has ended: to ask for what is new, let ranges overlap by the longest upload and
    /// drop what comes twice by `submission_id` and `ordinal`, or use a partitioned dataset, which goes by submissions.
    #[schema(nullable = false)]
    date_from: Option<String>,
    /// Rows stored before that time; with a date, until the end of that day in UTC.
    #[schema(nullable = false)]
    date_to: Option<String>,
    /// The columns.
    #[serde(flatten)]
    columns: BTreeMap<String, FilterValue>,
}

impl ExportSpec {
    /// Adds filters: `date_from` and `date_to` about the time of storing, where a date is the whole day in UTC, and
    /// equality for every other name. Faults name their field below `field`.
    #[must_use]
    pub fn filter_by(&mut self, field: &str, filters: &Map<String, Value>) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (name, value) in filters {
            match name.as_str() {
                "date_from" => match moment(value, 0) {
                    Ok(from) => self.from = Some(from),
                    Err(reason) => faults.push(Fault::of_parameter(&format!("{field}.date_from"), reason)),
                },
                "date_to" => match moment(value, 1) {
                    Ok(to) => self.to = Some(to),
                    Err(reason) => faults.push(Fault::of_parameter(&format!("{field}.date_to"), reason)),
                },
                _ => drop(self.filters.insert(name.clone(), value.clone())),
            }
        }
        if let (Some(from), Some(to)) = (self.from, self.to)
            && from >= to
        {
            faults.push(Fault::of_parameter(&format!("{field}.date_to"), "must be later than `date_from`"));
        }
        faults
    }
}

/// A time in UTC unless it says otherwise, or the beginning of a day so many days after a date.
fn moment(value: &Value, days: u64) -> Result<DateTime<Utc>, String> {
    let read = |text: &str| {
        if let Ok(time) = DateTime::parse_from_rfc3339(text) {
            return Some(time.to_utc());
        }
        if let Ok(time) = text.parse::<NaiveDateTime>() {
            return Some(time.and_utc());
        }
        let day = text.parse::<NaiveDate>().ok()?.checked_add_days(Days::new(days))?;
        Some(day.and_time(NaiveTime::MIN).and_utc())
    };
    let time = value.as_str().and_then(read).ok_or(EXPECTED)?;
    in_calendar(time).map(|_| time)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().expect("time")
    }

    #[test]
    fn a_date_is_a_whole_day_and_a_time_is_a_moment() {
        let mut spec = ExportSpec::default();
        let filters = json!({"date_from": "2026-01-01", "date_to": "2026-01-31", "taxid": "1"});
        assert!(spec.filter_by("filters", filters.as_object().expect("object")).is_empty());
        assert_eq!(spec.from, "2026-01-01T00:00:00Z".parse().ok());
        assert_eq!(spec.to, "2026-02-01T00:00:00Z".parse().ok());
        assert_eq!(spec.filters.get("taxid"), Some(&json!("1")));
        assert_eq!(moment(&json!("2026-01-31T08:00:00+01:00"), 1), Ok(time("2026-01-31T07:00:00Z")));
        assert_eq!(moment(&json!("2026-01-31T08:00:00"), 1), Ok(time("2026-01-31T08:00:00Z")));
    }

    #[test]
    fn what_is_no_time_and_what_ends_before_it_begins_is_named() {
        let mut spec = ExportSpec::default();
        let filters = json!({"date_from": "yesterday", "date_to": 3});
        let faults = spec.filter_by("filters", filters.as_object().expect("object"));
        let fields: Vec<_> = faults.iter().filter_map(|fault| fault.field.as_deref()).collect();
        assert_eq!(fields, ["filters.date_from", "filters.date_to"]);
        let filters = json!({"date_from": "2026-02-01", "date_to": "2026-01-31"});
        assert_eq!(spec.filter_by("filter.stast", filters.as_object().expect("object")).len(), 1);
    }
}
