//! What is looked at before anything is sent: LabKey drops columns that it does not know without a word, so that a
//! renamed column would lose data.

use serde::Serialize;

use super::Labkey;
use super::client::{Client, ColumnDetails, Details, User};
use super::failure::{Failure, FailureKind};
use super::list::{DELIVERY_KEY, Fit, List, RECORD_KEY, Target, takes};
use crate::config::Mode;
use crate::dataset::Kind;
use crate::db::labkey::Destination;

/// How rows are sent.
#[derive(utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = LabkeySendMode)]
pub enum SendMode {
    /// By their key, so that none can be there twice.
    Merge,
    /// As new ones; LabKey is asked first where it may have them.
    Insert,
}

/// How a list compares with what would be sent to it.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
#[schema(as = LabkeyListCheck)]
pub struct ListCheck {
    /// The dataset's name.
    #[schema(example = "gottcha2")]
    pub dataset: String,
    /// The list's schema.
    #[schema(example = "lists")]
    pub schema: String,
    /// The list's name.
    #[schema(example = "gottcha2_results")]
    pub list: String,
    /// How rows are sent; null when the list cannot be used.
    #[schema(required, value_type = Option<SendMode>)]
    pub mode: Option<&'static str>,
    /// What has to be mended before anything is sent.
    pub problems: Vec<String>,
    #[serde(skip)]
    target: Option<Found>,
    #[serde(skip)]
    kind: FailureKind,
}

#[derive(Debug, Clone)]
struct Found {
    merges: bool,
    has_record_key: bool,
    has_delivery_key: bool,
    key: String,
}

/// Who we are for LabKey, and how all lists compare, also with where rows went before.
///
/// # Errors
/// A server that does not answer, or does not let us in.
pub async fn all(labkey: &Labkey, before: &[Destination]) -> Result<(User, Vec<ListCheck>), Failure> {
    let user = labkey.client.whoami().await?;
    let mut checks = Vec::new();
    for list in &labkey.lists {
        checks.push(check(labkey, list, before).await?);
    }
    Ok((user, checks))
}

/// Looks at a list.
///
/// # Errors
/// A server that does not answer, or does not let us in.
pub async fn check(labkey: &Labkey, list: &List, before: &[Destination]) -> Result<ListCheck, Failure> {
    Ok(look(&labkey.client, list).await?.after(labkey, before))
}

async fn look(client: &Client, list: &List) -> Result<ListCheck, Failure> {
    match client.details(list.list_name()).await {
        Ok(details) => Ok(compare(list, &details)),
        Err(failure) if failure.kind == FailureKind::Configuration => {
            Ok(ListCheck { problems: vec![failure.reason], ..ListCheck::of(list) })
        }
        Err(failure) => Err(failure),
    }
}

impl ListCheck {
    /// A list that was not looked at yet.
    #[must_use]
    pub fn of(list: &List) -> Self {
        Self {
            dataset: list.dataset.name.clone(),
            schema: list.schema.clone(),
            list: list.name.clone(),
            mode: None,
            problems: Vec::new(),
            target: None,
            kind: FailureKind::Configuration,
        }
    }

    /// Where rows go to the list.
    #[must_use]
    pub fn destination(&self, labkey: &Labkey) -> Destination {
        let folder = labkey.config.project_path.as_deref().unwrap_or_default();
        Destination {
            dataset: self.dataset.clone(),
            server: labkey.config.server_url.as_deref().unwrap_or_default().trim_end_matches('/').to_owned(),
            folder: format!("/{}", folder.trim_matches('/')),
            schema: self.schema.clone(),
            list: self.list.clone(),
            mode: self.mode.unwrap_or_default().to_owned(),
        }
    }

    /// The check with a problem more when the dataset's rows went elsewhere before: what is on record of them is not true
    /// of this list.
    #[must_use]
    pub fn after(mut self, labkey: &Labkey, before: &[Destination]) -> Self {
        let Some(before) = before.iter().find(|before| before.dataset == self.dataset) else { return self };
        let mut now = self.destination(labkey);
        if self.mode.is_none() {
            // It is not known yet.
            now.mode.clone_from(&before.mode);
        }
        if !now.is_same(before) {
            self.problems.push(format!(
                "rows went to {before} before, and would go to {now}: configure the former again, or let \
                 `nvd-support-car labkey restart --dataset {}` send all rows to the latter",
                self.dataset
            ));
        }
        self
    }

    /// The list as a target.
    ///
    /// # Errors
    /// Its problems.
    pub fn target<'l>(&self, list: &'l List) -> Result<Target<'l>, Failure> {
        match (&self.target, self.problems.is_empty()) {
            (Some(found), true) => Ok(Target {
                list,
                merges: found.merges,
                has_record_key: found.has_record_key,
                has_delivery_key: found.has_delivery_key,
                key: found.key.clone(),
            }),
            _ => {
                let reason = format!("nothing is sent to the list {}: {}", self.list, self.problems.join("; "));
                Err(Failure::new(self.kind, reason))
            }
        }
    }
}

fn compare(list: &List, details: &Details) -> ListCheck {
    let mut check = ListCheck::of(list);
    let find = |name: &str| details.columns.iter().find(|column| column.name.eq_ignore_ascii_case(name));
    for (name, value) in &list.columns {
        let Some(column) = find(name) else {
            check.problems.push(format!("it has no column `{name}`, and LabKey would drop its values without a word"));
            continue;
        };
        if column.read_only {
            check.problems.push(format!("its column `{name}` cannot be written"));
        }
        match takes(&column.json_type, value) {
            Fit::Good => {}
            Fit::Narrow => check.problems.push(format!(
                "its column `{name}` holds 32-bit integers, and values may be larger: make it a decimal number, or map it \
                 as {{ small = ... }} to have such rows refused alone"
            )),
            Fit::Wrong => check.problems.push(format!(
                "its column `{name}` is of type {}, and the values are {}",
                column.kind.as_deref().unwrap_or(&column.json_type),
                described(value.kind)
            )),
        }
    }
    let is_sent = |column: &ColumnDetails| {
        list.columns
            .keys()
            .map(String::as_str)
            .chain([RECORD_KEY, DELIVERY_KEY])
            .any(|name| column.name.eq_ignore_ascii_case(name))
    };
    for column in details.columns.iter().filter(|column| column.required && !column.is_auto_increment) {
        if !is_sent(column) {
            check.problems.push(format!("its column `{}` needs a value, and none is sent", column.name));
        }
    }
    if details.can_edit == Some(false) {
        check.problems.push("the user may not change it".to_owned());
        check.kind = FailureKind::Permission;
    }
    choose_mode(list, details, &mut check);
    check
}

fn choose_mode(list: &List, details: &Details, check: &mut ListCheck) {
    let text = |name: &str| {
        let found = details.columns.iter().find(|column| column.name.eq_ignore_ascii_case(name));
        (found.is_some(), found.is_some_and(|column| column.json_type.eq_ignore_ascii_case("string")))
    };
    let key = details.columns.iter().find(|column| column.is_key_field);
    let is_record_key =
        |column: &ColumnDetails| column.name.eq_ignore_ascii_case(RECORD_KEY) && !column.is_auto_increment;
    let can_merge = details.support_merge && key.is_some_and(is_record_key);
    let merges = match list.mode {
        Mode::Auto => can_merge,
        Mode::Merge => true,
        Mode::Insert => false,
    };
    for name in [RECORD_KEY, DELIVERY_KEY] {
        if text(name) == (true, false) {
            check.problems.push(format!("its column `{name}` is no text"));
        }
    }
    if merges && !can_merge {
        check.problems.push(format!("it cannot be merged into: its key is not the text column `{RECORD_KEY}`"));
    }
    if !merges && !text(DELIVERY_KEY).0 {
        check.problems.push(format!(
            "it has no text column `{DELIVERY_KEY}`, by which a delivery in doubt is looked up; add one, or make `{RECORD_KEY}` its text key"
        ));
    }
    let Some(key) = key else {
        check.problems.push("it has no key".to_owned());
        return;
    };
    check.mode = Some(if merges { "merge" } else { "insert" });
    check.target = Some(Found {
        merges,
        has_record_key: text(RECORD_KEY).0,
        has_delivery_key: text(DELIVERY_KEY).0,
        key: key.name.clone(),
    });
}

const fn described(kind: Kind) -> &'static str {
    match kind {
        Kind::Text | Kind::Json => "text",
        Kind::Int => "whole numbers",
        Kind::Float => "numbers with fractions",
        Kind::Bool => "truth values",
        Kind::Timestamp => "times",
    }
}
