//! Selecting rows: filters, columns, order, pages.

use std::cmp::Ordering;

use serde_json::{Map, Value, json};

use super::lists::{Kind, List};
use super::wire::{Asked, Reply, Visit};

/// How many rows an answer has, unless the request says how many.
const DEFAULT_ROWS: usize = 100_000;

pub(super) fn select(visit: &Visit, asked: &Asked) -> Result<Reply, Reply> {
    let parameters = asked.parameters();
    let parameter = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let schema = parameter("schemaName").unwrap_or_default();
    if !schema.eq_ignore_ascii_case("lists") {
        return Err(not_found("The specified schema does not exist"));
    }
    let query = parameter("query.queryName").ok_or_else(|| not_found("Query not specified"))?;
    let lists = visit.state.lists.lock().expect("lists");
    let missing = || not_found(&format!("The specified query '{query}' does not exist in schema '{schema}'"));
    let list = lists.get(&query.to_lowercase()).ok_or_else(missing)?;

    let mut ignored = Vec::new();
    let mut filters = Vec::new();
    for (key, value) in &parameters {
        let Some((column, operator)) = key.strip_prefix("query.").and_then(|key| key.split_once('~')) else { continue };
        match list.find(column) {
            Some((place, kind)) => filters.extend(Filter::new(place, kind, column, operator, value)?),
            // No failure: all rows are found then.
            None => ignored.push(column),
        }
    }
    // The filter of the default view holds besides those of the request.
    let is_whole = parameter("query.ignoreFilter").is_some_and(|ignored| !ignored.is_empty());
    let mut rows: Vec<&[Value]> = list
        .cells()
        .filter(|row| (is_whole || list.shows(row)) && filters.iter().all(|filter| filter.holds(row)))
        .collect();
    for column in parameter("query.sort").unwrap_or_default().rsplit(',').filter(|column| !column.is_empty()) {
        let (name, is_descending) = column.strip_prefix('-').map_or((column, false), |name| (name, true));
        let Some((place, _)) = list.find(name) else { continue };
        rows.sort_by(|one, other| {
            let order = compare(&one[place], &other[place]);
            if is_descending { order.reverse() } else { order }
        });
    }
    let count = rows.len();
    let offset = parameter("query.offset").and_then(|offset| offset.parse().ok()).unwrap_or(0);
    let limit = match parameter("query.maxRows").and_then(|limit| limit.parse::<i64>().ok()) {
        None => DEFAULT_ROWS,
        Some(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
    };
    let places = columns(list, parameter("query.columns"));
    let is_extended = parameter("apiVersion").and_then(|version| version.parse::<f64>().ok()).unwrap_or(8.3) >= 9.1;
    let object = |row: &&[Value]| -> Map<String, Value> {
        let cell = |place: usize| if is_extended { json!({"value": row[place]}) } else { row[place].clone() };
        places.iter().map(|&place| (list.column_name(place).to_owned(), cell(place))).collect()
    };
    let found: Vec<_> = rows.iter().skip(offset).take(limit).map(object).collect();
    let fields: Vec<_> = places.iter().map(|&place| json!({"name": list.column_name(place)})).collect();
    let mut body = json!({
        "schemaName": schema,
        "queryName": list.name(),
        "formatVersion": if is_extended { 9.1 } else { 8.3 },
        "metaData": {"root": "rows", "totalProperty": "rowCount", "id": list.key_name(), "fields": fields},
        "rows": found,
        "rowCount": count,
    });
    if !ignored.is_empty() {
        let content = format!("Ignoring filter/sort on column '{}' because it does not exist.", ignored.join("', '"));
        body["messages"] = json!([{"area": "filter", "content": content, "type": "WARNING"}]);
    }
    Ok(Reply::json(200, &body))
}

/// The wanted columns, and the key in any case. Unknown ones are ignored.
fn columns(list: &List, wanted: Option<&str>) -> Vec<usize> {
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty() && *wanted != "*") else {
        return (0..list.width()).collect();
    };
    let mut places: Vec<_> = wanted.split(',').filter_map(|name| Some(list.find(name.trim())?.0)).collect();
    if !places.contains(&0) {
        places.push(0);
    }
    places
}

fn not_found(message: &str) -> Reply {
    Reply::exception(404, "org.labkey.api.view.NotFoundException", message)
}

struct Filter {
    place: usize,
    operator: String,
    values: Vec<Value>,
}

impl Filter {
    /// A filter, or nothing if there is no such operator: LabKey ignores those too.
    fn new(place: usize, kind: Kind, column: &str, operator: &str, value: &str) -> Result<Option<Self>, Reply> {
        let texts: Vec<String> = match operator {
            "in" | "notin" => value
                .strip_prefix("{json:")
                .and_then(|value| serde_json::from_str::<Vec<Value>>(value.strip_suffix('}')?).ok())
                .map(|values| {
                    values.iter().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)).collect()
                })
                .unwrap_or_else(|| value.split(';').map(str::to_owned).collect()),
            "eq" | "neq" | "neqornull" | "gt" | "gte" | "lt" | "lte" | "isblank" | "isnonblank" | "startswith"
            | "contains" => vec![value.to_owned()],
            _ => return Ok(None),
        };
        let is_text = ["startswith", "contains"].contains(&operator);
        let convert = |text: String| {
            let kind = if is_text { Kind::Text } else { kind };
            let empty = text.is_empty().then_some(Value::Null);
            empty.or_else(|| kind.convert(&Value::String(text.clone()))).ok_or_else(|| {
                let message = format!("Could not convert filter value \"{text}\" for column \"{column}\".");
                Reply::exception(400, "org.labkey.api.action.ApiUsageException", &message)
            })
        };
        let values = texts.into_iter().map(convert).collect::<Result<_, _>>()?;
        Ok(Some(Self { place, operator: operator.to_owned(), values }))
    }

    fn holds(&self, row: &[Value]) -> bool {
        let (cell, value) = (&row[self.place], &self.values[0]);
        let is_among = self.values.contains(cell);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
        match self.operator.as_str() {
            "eq" | "in" => is_among,
            "neq" | "notin" | "neqornull" => !is_among,
            "isblank" => cell.is_null(),
            "isnonblank" => !cell.is_null(),
            "startswith" => text(cell).starts_with(&text(value)),
            "contains" => text(cell).contains(&text(value)),
            _ if cell.is_null() || value.is_null() => false,
            "gt" => compare(cell, value).is_gt(),
            "gte" => compare(cell, value).is_ge(),
            "lt" => compare(cell, value).is_lt(),
            _ => compare(cell, value).is_le(),
        }
    }
}

/// Nulls last, as PostgreSQL sorts them.
fn compare(one: &Value, other: &Value) -> Ordering {
    match (one, other) {
        (Value::String(one), Value::String(other)) => one.cmp(other),
        (Value::Bool(one), Value::Bool(other)) => one.cmp(other),
        _ => match (one.as_f64(), other.as_f64()) {
            (Some(one), Some(other)) => one.total_cmp(&other),
            (one, other) => one.is_none().cmp(&other.is_none()),
        },
    }
}
