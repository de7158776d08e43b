//! `labkey check`, `labkey sync` and `labkey restart`: LabKey from the command line.

use clap::Subcommand;

use super::export::{PATIENCE, watch};
use crate::app::App;
use crate::config::Config;
use crate::dataset::Datasets;
use crate::db;
use crate::db::embedded::Options;
use crate::db::labkey::{Destination, destinations};
use crate::error::{Error, Result};
use crate::jobs::enqueue_sync;
use crate::jobs::sync::{self, configured};
use crate::jobs::worker::Workers;
use crate::labkey::preflight::{self, ListCheck};
use crate::labkey::report::DatasetReport;
use crate::labkey::{Labkey, client::User};
use crate::serve::Database;

/// What is done with LabKey.
#[derive(Debug, Subcommand)]
pub enum LabkeyCommand {
    /// Compare LabKey's lists with what would be sent to them, and with where rows went before. Sends nothing.
    Check,
    /// Deliver what is pending, now.
    Sync {
        /// This dataset only.
        #[arg(long, value_name = "NAME")]
        dataset: Option<String>,
    },
    /// Forget to which list the rows of a dataset were delivered, so that all of them go to the configured one.
    Restart {
        /// Whose rows.
        #[arg(long, value_name = "NAME")]
        dataset: String,
        /// It is the same list under another name or address: what was delivered stays on record.
        #[arg(long)]
        keep_deliveries: bool,
    },
}

/// Does it, and answers with what to print.
///
/// # Errors
/// A list that cannot be used, rows that were not delivered, Ctrl-C.
pub async fn run(config: Config, command: &LabkeyCommand) -> Result<String> {
    match command {
        LabkeyCommand::Check => check(&config).await,
        LabkeyCommand::Sync { dataset } => {
            let mut config = config;
            // This process is to do this work, whatever the service's share is, and no other.
            config.labkey.slots = config.labkey.slots.max(1);
            config.export.slots = 0;
            with_app(config, async |app| sync(app, dataset.as_deref()).await).await
        }
        LabkeyCommand::Restart { dataset, keep_deliveries } => {
            with_app(config, async |app| restart(app, dataset, *keep_deliveries).await).await
        }
    }
}

/// Does something over the configured database.
async fn with_app(config: Config, work: impl AsyncFnOnce(&App) -> Result<String>) -> Result<String> {
    let database = Database::open(&config).await?;
    let app = App::new(config, &database.url)?;
    let done = work(&app).await;
    app.pool.close().await;
    database.close().await?;
    done
}

async fn check(config: &Config) -> Result<String> {
    let datasets = Datasets::load(config.datasets.dir.as_deref()).map_err(Error::Definitions)?;
    let labkey = Labkey::open(&config.labkey, &datasets)?;
    let labkey = labkey.ok_or_else(|| Error::Environment("labkey.server_url is not set".into()))?;
    let before = before(config).await;
    let known = before.as_deref().unwrap_or_default();
    let (user, checks) = preflight::all(&labkey, known).await?;
    let mut text = described(&labkey, &user, &checks);
    if let Err(error) = &before {
        text += &format!("where rows went before is not known: {error}\n");
    }
    if checks.iter().any(|check| !check.problems.is_empty()) { Err(Error::Environment(text)) } else { Ok(text) }
}

/// Where rows went before. For that alone no database is made.
async fn before(config: &Config) -> Result<Vec<Destination>> {
    if config.database.url.is_none() && !Options::below(&config.data_dir).dir.exists() {
        return Ok(Vec::new());
    }
    let database = Database::open(config).await?;
    let pool = db::pool(&database.url, &config.database)?;
    let before = destinations(&pool).await;
    pool.close().await;
    database.close().await?;
    before
}

fn described(labkey: &Labkey, user: &User, checks: &[ListCheck]) -> String {
    let server = labkey.config.server_url.as_deref().unwrap_or_default();
    let project = labkey.config.project_path.as_deref().unwrap_or_default();
    let mut lines = vec![format!("{server} {project} as {}", user.email)];
    for check in checks {
        let verdict = if check.problems.is_empty() { check.mode.unwrap_or("ready") } else { "cannot be used" };
        lines.push(format!("{} -> {}.{}: {verdict}", check.dataset, check.schema, check.list));
        lines.extend(check.problems.iter().map(|problem| format!("  problem: {problem}")));
    }
    lines.join("\n") + "\n"
}

async fn restart(app: &App, dataset: &str, keeps: bool) -> Result<String> {
    app.prepare().await?;
    let (before, forgotten) = sync::restart(app, dataset, keeps).await?;
    let list = before.map_or_else(|| "no list that is known".to_owned(), |before| before.to_string());
    Ok(if keeps {
        format!("{dataset}: what was delivered to {list} counts as delivered to the configured list\n")
    } else {
        format!(
            "{dataset}: {forgotten} deliveries to {list} are forgotten, and all rows go to the configured list; those in the \
             former are left there\n"
        )
    })
}

async fn sync(app: &App, dataset: Option<&str>) -> Result<String> {
    let labkey = configured(app)?;
    let wanted: Vec<String> = match dataset {
        Some(name) => vec![labkey.list(name)?.dataset.name.clone()],
        None => labkey.lists.iter().map(|list| list.dataset.name.clone()).collect(),
    };
    app.prepare().await?;
    app.is_ready.store(true, std::sync::atomic::Ordering::Release);
    let workers = Workers::start(app);
    let mut lines = Vec::new();
    let mut is_good = true;
    for name in wanted {
        let (job, _) = enqueue_sync(&mut *app.pool.acquire().await?, &name).await?;
        app.wake_workers();
        let job = watch(app, job.id).await?;
        let report = job.report.and_then(|report| serde_json::from_value::<DatasetReport>(report).ok());
        is_good &= job.state == "completed" && report.as_ref().is_some_and(|report| report.failed == 0);
        let errors = report.as_ref().map(|report| report.errors.clone()).unwrap_or_default();
        lines.push(match report {
            Some(report) => format!(
                "{name}: {} rows delivered, {} refused, {} still pending, {} removed in {:.1} s",
                report.uploaded, report.failed, report.remaining, report.removed, report.duration_seconds
            ),
            None => format!("{name}: {}", job.state),
        });
        lines.extend(errors.iter().map(|error| format!("  {error}")));
        // What a report tells is told without its causes.
        let is_told = |error: &String| errors.iter().any(|told| error.contains(told));
        lines.extend(
            job.error.filter(|error| job.state == "failed" && !is_told(error)).map(|error| format!("  {error}")),
        );
        if job.state == "cancelled" {
            break;
        }
    }
    workers.stop(PATIENCE).await;
    let text = lines.join("\n") + "\n";
    if is_good { Ok(text) } else { Err(Error::Environment(format!("not everything was delivered:\n{text}"))) }
}
