//! The command line: what can be asked for, and what each command does.

mod convert;
mod demo;
mod export;
mod import;
mod labkey;
mod lake;
mod send;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::app::App;
use crate::config::{Config, LogConfig, Scope, check_location};
use crate::dataset::Datasets;
use crate::error::{Error, Result};
use crate::jobs::schedule;
use crate::labkey::Labkey;
use crate::serve::{Database, Service};
use crate::{db, http, secrets, telemetry, tls};

/// Takes in metagenomic results from HTCondor workers, exactly once.
#[derive(Debug, Parser)]
#[command(name = "nvd-support-car", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    listen: Listen,
    /// What to do; `serve` when absent.
    #[command(subcommand)]
    command: Option<Command>,
}

/// Sends metagenomic results to NVD Support Car: the part of the program that workers need, small and alone.
#[derive(Debug, Parser)]
#[command(name = "nvd-support-car-send", version, propagate_version = true)]
pub struct Sender {
    #[command(flatten)]
    common: Common,
    /// What to send.
    #[command(subcommand)]
    command: Sending,
}

/// Options of every command.
#[derive(Debug, Args)]
struct Common {
    /// Configuration file (also NVD_CONFIG).
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the embedded database, of exports and of generated secrets.
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Sets any key of the configuration; may be repeated.
    // Checked here, and read by `settings`.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = parse_pair)]
    set: Vec<(String, String)>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service.
    Serve(Listen),
    /// Run the service and send it real sample results.
    Demo(Listen),
    #[command(flatten)]
    Sending(Sending),
    /// Write a dataset to files, once; or keep partitioned datasets up to date.
    Export(Box<export::Export>),
    /// Turn files that never went through a service into partitioned datasets; needs no database.
    Convert(Box<convert::Convert>),
    /// Look at LabKey, and deliver to it.
    #[command(subcommand)]
    Labkey(labkey::LabkeyCommand),
    /// Make access tokens.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Look at datasets and their tables.
    #[command(subcommand)]
    Datasets(DatasetsCommand),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the OpenAPI description.
    Openapi,
    /// Ask a running service whether it is ready; for container health checks.
    Healthcheck(Healthcheck),
}

/// Commands that need a running service, and no database.
#[derive(Debug, Subcommand)]
enum Sending {
    /// Send result files to a running service, each until it is stored.
    Send(Box<send::Send>),
    /// Send the results of finished runs, found in a folder by its layout.
    Import(Box<import::Import>),
}

impl Sending {
    async fn run(self, common: &Common) -> ExitCode {
        let config = load(common, &[]);
        match self {
            Self::Send(options) => send::run(config, *options).await.into(),
            Self::Import(options) => import::run(config, *options).await.into(),
        }
    }
}

/// Where to listen.
#[derive(Debug, Args)]
struct Listen {
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token: prints it once, and the lines for the configuration that hold only its hash.
    New {
        /// Who or what will use it.
        #[arg(long, value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// What it allows; may be repeated.
        #[arg(long, required = true)]
        scope: Vec<Scope>,
    },
}

#[derive(Debug, Subcommand)]
enum DatasetsCommand {
    /// List the datasets.
    List,
    /// Print the SQL that would bring the tables up to date, without running it.
    Plan,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the effective configuration without secrets, or all its faults.
    Check,
}

#[derive(Debug, Args)]
struct Healthcheck {
    /// Address of the service; the configured one when absent.
    #[arg(long)]
    url: Option<String>,
}

/// Runs a command and tells how it ended: 0 well, 1 failed, 2 wrong usage; `send` has codes of its own.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    block_on(execute(cli))
}

/// Runs a command of the sender, which ends with the codes of `send`.
#[must_use]
pub fn run_sender(sender: Sender) -> ExitCode {
    block_on(async move { Ok(sender.command.run(&sender.common).await) })
}

/// Threads for work that waits: more than uploads may wait (`ingest.queue`, 900 at most), so that files are read meanwhile.
const BLOCKING_THREADS: usize = 1024;

fn block_on(work: impl Future<Output = Result<ExitCode>>) -> ExitCode {
    tls::use_ring();
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().max_blocking_threads(BLOCKING_THREADS).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return failed(&Error::Environment(format!("cannot start: {error}"))),
        };
    let done = runtime.block_on(work);
    // Decoding threads of bodies that were cut off must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done.unwrap_or_else(|error| failed(&error))
}

fn failed(error: &Error) -> ExitCode {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    eprintln!("error: {error}{cause}");
    ExitCode::FAILURE
}

async fn execute(cli: Cli) -> Result<ExitCode> {
    let Cli { common, listen, command } = cli;
    if command.is_some() && listen.listen.is_some() {
        let reason = "--listen stands behind the command, which must be one that listens\n";
        Cli::command().error(ErrorKind::ArgumentConflict, reason).exit();
    }
    let done = match command.unwrap_or(Command::Serve(listen)) {
        Command::Serve(listen) => Service::start(service_config(&common, &listen)?).await?.run().await,
        Command::Demo(listen) => demo::run(service_config(&common, &listen)?).await,
        Command::Sending(sending) => return Ok(sending.run(&common).await),
        Command::Export(wish) => {
            let config = load(&common, &[])?;
            telemetry::init_logs(&LogConfig { level: "warn".into(), ..config.log.clone() })?;
            print(&export::run(config, &wish).await?)
        }
        Command::Convert(wish) => {
            let config = load(&common, &[])?;
            telemetry::init_logs(&LogConfig { level: "warn".into(), ..config.log.clone() })?;
            return convert::run(config, *wish).await;
        }
        Command::Labkey(command) => {
            let config = load(&common, &[])?;
            telemetry::init_logs(&LogConfig { level: "warn".into(), ..config.log.clone() })?;
            print(&labkey::run(config, &command).await?)
        }
        Command::Token(TokenCommand::New { name, scope }) => new_token(&name, &scope),
        Command::Datasets(command) => datasets(load(&common, &[])?, &command).await,
        Command::Config(ConfigCommand::Check) => {
            let config = load(&common, &[])?;
            check_uses(&config)?;
            print(&config.to_toml().map_err(|error| Error::Environment(error.to_string()))?)
        }
        Command::Openapi => openapi(&load(&common, &[])?),
        Command::Healthcheck(healthcheck) => check_health(&load(&common, &[])?, healthcheck.url).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn load(common: &Common, flags: &[(String, String)]) -> Result<Config> {
    // What is not UTF-8 is a path, and no setting.
    let arguments = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned());
    let mut overrides = settings(arguments).map_err(Error::Environment)?;
    if let Some(dir) = &common.data_dir {
        overrides.push(("data_dir".into(), dir.display().to_string()));
    }
    overrides.extend_from_slice(flags);
    // Names that are not UTF-8 cannot be ours.
    let env =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok(Config::load(common.config.as_deref(), env, &overrides)?)
}

fn service_config(common: &Common, listen: &Listen) -> Result<Config> {
    let mut flags = Vec::new();
    if let Some(address) = &listen.listen {
        let (host, port) = address.rsplit_once(':').ok_or_else(|| {
            Error::Environment(format!("--listen {address} is not HOST:PORT, such as 127.0.0.1:8080"))
        })?;
        flags.push(("server.host".to_owned(), host.trim_matches(['[', ']']).to_owned()));
        flags.push(("server.port".to_owned(), port.to_owned()));
    }
    let config = load(common, &flags)?;
    telemetry::init_logs(&config.log)?;
    Ok(config)
}

/// Looks at what the keys of a configuration speak of: definitions of datasets, schedules, lists of LabKey.
fn check_uses(config: &Config) -> Result<()> {
    let datasets = Datasets::load(config.datasets.dir.as_deref()).map_err(Error::Definitions)?;
    let labkey = Labkey::open(&config.labkey, &datasets)?;
    schedule::configured(config, &datasets, labkey.as_ref())?;
    telemetry::init_logs(&config.log)
}

fn new_token(name: &str, scopes: &[Scope]) -> Result<()> {
    let token = secrets::generate(secrets::TOKEN_PREFIX)?;
    let hash = data_encoding::HEXLOWER.encode(&secrets::hash(&token));
    let scopes: Vec<String> = scopes.iter().map(|scope| format!("\"{}\"", scope.as_str())).collect();
    let name = toml::Value::from(name);
    print(&format!(
        "Token, shown only now:\n{token}\n\nFor the configuration file:\n[[auth.tokens]]\nname = {name}\nscopes = [{}]\nsha256 = \"{hash}\"\n",
        scopes.join(", ")
    ))
}

fn openapi(config: &Config) -> Result<()> {
    let datasets = Datasets::load(config.datasets.dir.as_deref()).map_err(Error::Definitions)?;
    let text =
        serde_json::to_string_pretty(&http::openapi(&datasets)).map_err(|error| Error::Internal(error.to_string()))?;
    print(&format!("{text}\n"))
}

async fn datasets(config: Config, command: &DatasetsCommand) -> Result<()> {
    match command {
        DatasetsCommand::List => {
            let datasets = Datasets::load(config.datasets.dir.as_deref()).map_err(Error::Definitions)?;
            let lines =
                datasets.iter().map(|dataset| format!("{}\t{}\t{}\n", dataset.name, dataset.table, dataset.title));
            print(&lines.collect::<String>())
        }
        DatasetsCommand::Plan => {
            let database = Database::open(&config).await?;
            let app = App::new(config, &database.url)?;
            let planned = plan(&app).await;
            app.pool.close().await;
            database.close().await?;
            print(&planned?)
        }
    }
}

async fn plan(app: &App) -> Result<String> {
    let mut connection = app.pool.acquire().await?;
    let statements = db::tables::plan(&mut connection, &app.datasets).await?;
    if statements.is_empty() {
        return Ok("-- All tables are as declared.\n".to_owned());
    }
    Ok(statements.iter().map(|statement| format!("{statement};\n")).collect())
}

async fn check_health(config: &Config, url: Option<String>) -> Result<()> {
    let url = url.unwrap_or_else(|| {
        let everywhere = ["0.0.0.0", "::"].contains(&config.server.host.as_str());
        let address = if everywhere { format!("127.0.0.1:{}", config.server.port) } else { config.listen() };
        let scheme = if config.server.cert_path.is_some() { "https" } else { "http" };
        format!("{scheme}://{address}")
    });
    // The question goes to this machine, under a name that its certificate need not have.
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(5))
        .tls_danger_accept_invalid_certs(true)
        .no_proxy()
        .build()
        .map_err(|error| Error::Environment(error.to_string()))?;
    let answer = client.get(format!("{}/readyz", url.trim_end_matches('/'))).send().await;
    let answer = answer.map_err(|error| Error::Environment(format!("{url} does not answer: {error}")))?;
    if answer.status().is_success() {
        return print("ready\n");
    }
    let status = answer.status();
    Err(Error::Environment(format!("{url} answers {status}: {}", answer.text().await.unwrap_or_default())))
}

/// Every `--set` of a command line, wherever it stands: of those before and behind the command clap keeps the latter.
fn settings(mut arguments: impl Iterator<Item = String>) -> Result<Vec<(String, String)>, String> {
    let mut settings = Vec::new();
    while let Some(argument) = arguments.next().filter(|argument| argument != "--") {
        let pair = match argument.strip_prefix("--set") {
            Some("") => arguments.next(),
            Some(rest) => rest.strip_prefix('=').map(str::to_owned),
            None => None,
        };
        settings.extend(pair.map(|pair| parse_pair(&pair)).transpose()?);
    }
    Ok(settings)
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    pair(text).ok_or_else(|| "expected KEY=VALUE, such as limits.burst=100".to_owned())
}

fn parse_column(text: &str) -> Result<(String, String), String> {
    pair(text).ok_or_else(|| "expected COLUMN=VALUE, such as sample_id=S1".to_owned())
}

fn pair(text: &str) -> Option<(String, String)> {
    text.split_once('=').map(|(key, value)| (key.trim().to_owned(), value.to_owned()))
}

/// Waits until somebody presses Ctrl-C, or asks the program to end by SIGTERM, as batch systems do.
async fn interrupted() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signals) => drop(signals.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}

/// Refuses what somebody means as a bucket or as his home, and what would become a folder of that name here.
fn check_output(location: &str) -> Result<()> {
    check_location(location).map_err(|reason| Error::Environment(format!("--output {reason}")))
}

fn print(text: &str) -> Result<()> {
    // A closed pipe (`... | head`) is no failure.
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::Environment(error.to_string())),
        _ => Ok(()),
    }
}
