//! What an operator sets of an extract, and whether it can be had.

use std::collections::BTreeMap;

use croner::parser::Seconds;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::app::App;
use crate::config::{Compression, Format};
use crate::dataset::Fault;
use crate::error::{Error, Result};
use crate::export::filters::RowFilter;
use crate::export::spec::{ExportSpec, Plan};
use crate::jobs::timing::Timing;

/// The form of an extract's data files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExtractFormat {
    /// One YAML sequence of mappings, one a line.
    Yaml,
    /// One JSON array of objects.
    Json,
    /// One JSON object a line.
    #[default]
    Jsonl,
    /// Comma-separated values by RFC 4180 with a header.
    Csv,
    /// Columns in Parquet 2.
    Parquet,
    /// JSONL, with all files of a run in one ZIP.
    Archive,
}

impl ExtractFormat {
    const fn of_data(self) -> Format {
        match self {
            Self::Yaml => Format::Yaml,
            Self::Json => Format::Json,
            Self::Jsonl | Self::Archive => Format::Jsonl,
            Self::Csv => Format::Csv,
            Self::Parquet => Format::Parquet,
        }
    }
}

/// A part of what is extracted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = ExtractPart)]
pub enum Include {
    /// `describe.yaml`: the datasets, their columns, and how much is in them.
    Describe,
    /// The rows.
    Data,
}

/// Everything that an operator sets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExtractConfig {
    /// For people; unique.
    #[schema(
        example = "Full Export",
        min_length = 1,
        max_length = 200,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    pub name: String,
    /// Notes.
    #[schema(required)]
    pub description: Option<String>,
    /// The form of the data files; `jsonl` unless told.
    pub format: ExtractFormat,
    /// What is extracted; both unless told.
    #[schema(min_items = 1, max_items = 2)]
    pub include: Vec<Include>,
    /// These datasets; all, those to come among them, when null.
    #[schema(required, min_items = 1, example = json!(["gottcha2", "stast"]))]
    pub schemas: Option<Vec<String>>,
    /// Which rows, for each dataset that is named here; all of the others.
    #[schema(required, value_type = Option<BTreeMap<String, RowFilter>>, example = json!({"gottcha2": {"level": "species", "date_from": "2026-01-01"}}))]
    pub filter: Option<BTreeMap<String, Map<String, Value>>>,
    /// Whether text files are compressed with gzip, as they are unless told. Parquet is compressed inside in any case.
    pub compress: bool,
    /// Whether the file of a dataset ends at `export.file_size` and another begins; not unless told.
    pub split_files: bool,
    /// When it runs by itself: a cron expression of five fields, or of six with seconds.
    #[schema(required, example = "0 5 * * *")]
    pub schedule: Option<String>,
    /// The time zone of the schedule; UTC when null.
    #[schema(required, example = "America/Chicago")]
    pub timezone: Option<String>,
    /// Whether it runs by itself; not unless told.
    pub schedule_enabled: bool,
    /// Days for which artifacts are kept, 7 unless told.
    #[schema(minimum = 1, maximum = 3650)]
    pub retention_days: u32,
    /// Whether it can be run, as it can unless told.
    pub enabled: bool,
    /// The webhooks, by their names in the configuration of the service, that hear how runs end.
    #[schema(example = json!(["lab-slack"]))]
    pub notify: Vec<String>,
}

impl Default for ExtractConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            description: None,
            format: ExtractFormat::default(),
            include: vec![Include::Describe, Include::Data],
            schemas: None,
            filter: None,
            compress: true,
            split_files: false,
            schedule: None,
            timezone: None,
            schedule_enabled: false,
            retention_days: 7,
            enabled: true,
            notify: Vec::new(),
        }
    }
}

impl ExtractConfig {
    /// Reads what is stored.
    ///
    /// # Errors
    /// What nobody has stored.
    pub fn read(stored: &Value) -> Result<Self> {
        serde_json::from_value(stored.clone())
            .map_err(|error| Error::Internal(format!("a stored extract cannot be read: {error}")))
    }

    /// Everything that is wrong.
    #[must_use]
    pub fn faults(&self, app: &App) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, field: &str, reason: String| {
            if !holds {
                faults.push(Fault::of_parameter(field, reason));
            }
        };
        let letters = self.name.chars().count();
        let has_name = (1..=200).contains(&letters) && !self.name.trim().is_empty();
        check(has_name && !self.name.contains(char::is_control), "name", "must be 1 to 200 letters".into());
        let twice = self.include.iter().enumerate().any(|(at, part)| self.include[..at].contains(part));
        check(!self.include.is_empty() && !twice, "include", "must name `describe`, `data`, or both".into());
        check((1..=3650).contains(&self.retention_days), "retention_days", "must be between 1 and 3650".into());
        let has_schedule = self.schedule.is_some() || !self.schedule_enabled;
        check(has_schedule, "schedule", "is required: `schedule_enabled` needs a cron expression".into());
        if let Err(reason) = self.timing() {
            check(false, if reason.contains("time zone") { "timezone" } else { "schedule" }, reason);
        }
        let known = app.config.notify.webhooks.iter().map(|webhook| webhook.name.as_str());
        let known: Vec<&str> = known.collect();
        for name in self.notify.iter().filter(|name| !known.contains(&name.as_str())) {
            let reason = format!("`{name}` is no webhook; the service has: {}", known.join(", "));
            check(false, "notify", reason);
        }
        match &self.schemas {
            Some(names) if names.is_empty() => check(false, "schemas", "is empty; null means all".into()),
            _ => {}
        }
        match self.plans(app) {
            Ok(_) => {}
            Err(Error::Faults(more)) => faults.extend(more),
            Err(error) => faults.push(Fault::of_parameter("schemas", error.to_string())),
        }
        faults
    }

    /// When it is due, if it runs by itself.
    ///
    /// # Errors
    /// Why the expression or the time zone is none.
    pub fn timing(&self) -> Result<Option<Timing>, String> {
        let timing = |cron: &String| Timing::parse(cron, self.timezone.as_deref(), Seconds::Optional);
        self.schedule.as_ref().map(timing).transpose()
    }

    /// What is read, in the order of the datasets' names.
    ///
    /// # Errors
    /// A dataset that is not there, a filter that does not fit.
    pub fn plans(&self, app: &App) -> Result<Vec<Plan>> {
        let names = self.schemas.clone().unwrap_or_else(|| app.datasets.names().to_vec());
        let mut faults = Vec::new();
        let mut plans: Vec<Plan> = Vec::new();
        for name in &names {
            let Some(dataset) = app.datasets.get(name) else {
                let known = app.datasets.names().join(", ");
                faults.push(Fault::of_parameter("schemas", format!("there is no schema `{name}`; there are {known}")));
                continue;
            };
            if plans.iter().any(|plan| plan.dataset.name == *name) {
                faults.push(Fault::of_parameter("schemas", format!("names `{name}` twice")));
                continue;
            }
            let mut spec = self.spec();
            let field = format!("filter.{name}");
            if let Some(filter) = self.filter.as_ref().and_then(|filter| filter.get(name)) {
                faults.extend(spec.filter_by(&field, filter));
            }
            match spec.plan(dataset, (app.config.export.compression, app.config.export.compression_level)) {
                Ok(plan) => plans.push(plan),
                Err(Error::Faults(more)) => faults.extend(more.into_iter().map(|fault| below(&field, fault))),
                Err(error) => return Err(error),
            }
        }
        for name in self.filter.iter().flat_map(BTreeMap::keys).filter(|name| !names.contains(name)) {
            faults.push(Fault::of_parameter(&format!("filter.{name}"), "is about a schema that is not extracted"));
        }
        plans.sort_by(|one, other| one.dataset.name.cmp(&other.dataset.name));
        if faults.is_empty() { Ok(plans) } else { Err(Error::Faults(faults)) }
    }

    fn spec(&self) -> ExportSpec {
        let format = self.format.of_data();
        let compression = match format {
            Format::Parquet => None,
            _ if self.compress => Some(Compression::Gzip),
            _ => Some(Compression::None),
        };
        ExportSpec { format, compression, ..ExportSpec::default() }
    }
}

/// A fault of a specification as one of the field that it came from.
fn below(field: &str, mut fault: Fault) -> Fault {
    let name = fault.field.as_deref().unwrap_or_default();
    fault.field = Some(format!("{field}.{}", name.trim_start_matches("filters.")));
    fault
}
