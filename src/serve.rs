//! Runs the service: the database it may need, HTTP or HTTPS, workers and clock, and an orderly end.

use std::convert::Infallible;
use std::io::IsTerminal;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::app::App;
use crate::config::{Config, Secret};
use crate::db::embedded::{Cluster, Options};
use crate::error::{Error, Result};
use crate::jobs::schedule::Clock;
use crate::jobs::worker::Workers;
use crate::secrets::{GENERATED_TOKEN, TOKEN_PREFIX};
use crate::{http, jobs, secrets, telemetry};

/// How often certificate files are looked at for a change.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(10);

/// How long a client may take over the head of a request, or keep a connection without one. Common clients give up idle
/// connections after 90 seconds.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// How long the database may take to answer at the start. After that requests are answered without it, so that those who look
/// after the service find it alive.
const FIRST_LOOK: Duration = Duration::from_secs(3);

/// How long connections to the database may take to end when the deadline of a stop is over.
const FAREWELL: Duration = Duration::from_secs(1);

/// How often metrics are tidied up, which keeps those that nobody fetches from growing.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// How often it is looked whether the embedded database still runs.
const DATABASE_CHECK: Duration = Duration::from_secs(5);

/// A database to work with: the configured one, or the embedded one for as long as this lives.
pub struct Database {
    /// Where it is, with its password.
    pub url: String,
    cluster: Option<Cluster>,
}

impl Database {
    /// The configured database, or the embedded one, started if nobody uses it yet.
    ///
    /// # Errors
    /// When the embedded PostgreSQL cannot be started.
    pub async fn open(config: &Config) -> Result<Self> {
        if let Some(url) = &config.database.url {
            return Ok(Self { url: url.expose().to_owned(), cluster: None });
        }
        let mut options = Options::below(&config.data_dir);
        let mebibytes = config.embedded.shared_buffers.as_u64() / (1024 * 1024);
        options.shared_buffers_mib = (mebibytes > 0).then_some(mebibytes);
        let cluster = Cluster::start(options).await?;
        Ok(Self { url: cluster.url("nvd"), cluster: Some(cluster) })
    }

    /// Starts an embedded database again whenever it has ended by itself, and never ends. Nobody else would: its users are
    /// told to try again later.
    pub async fn keep_alive(&self) -> Infallible {
        loop {
            tokio::time::sleep(DATABASE_CHECK).await;
            if let Some(cluster) = &self.cluster
                && let Err(error) = cluster.revive().await
            {
                tracing::error!(%error, "PostgreSQL has ended and cannot be started");
            }
        }
    }

    /// Ends the use of an embedded database; its last user stops it.
    ///
    /// # Errors
    /// When it does not stop.
    pub async fn close(self) -> Result<()> {
        match self.cluster {
            Some(cluster) => Ok(cluster.stop().await?),
            None => Ok(()),
        }
    }
}

/// A service that answers requests.
pub struct Service {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its address for people, with the scheme.
    pub url: String,
    handle: Handle<SocketAddr>,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
    app: App,
    workers: Workers,
    clock: Clock,
    database: Database,
    deadline: Duration,
    signals: [Signal; 2],
    hangup: Signal,
}

impl Service {
    /// Starts everything. Requests are answered when this returns, or refused with 503 until a database that is away
    /// comes back.
    ///
    /// # Errors
    /// A configuration that must not be served, an address in use, an unusable certificate, a database that cannot be
    /// brought up to date, a storage of exports that cannot be used.
    pub async fn start(mut config: Config) -> Result<Self> {
        // From here on they end the service in order: an embedded database that is being started must be stopped too.
        let signals = [listen_to(SignalKind::terminate())?, listen_to(SignalKind::interrupt())?];
        let hangup = listen_to(SignalKind::hangup())?;
        let address = resolve(&config)?;
        ensure_token(&mut config, address)?;
        let tls = tls(&config).await?;
        let listener = listen(address, config.ingest.idle_timeout)?;
        let address = listener.local_addr().map_err(|error| Error::Environment(error.to_string()))?;
        tokio::spawn(tidy(telemetry::metrics()?));
        let database = Database::open(&config).await?;
        let deadline = config.server.shutdown_deadline;
        let app = App::new(config, &database.url)?;
        app.storage.check().await?;
        prepare(&app).await?;
        tokio::spawn(jobs::sync::preflight(app.clone()));
        let clock = Clock::start(&app).await?;
        let workers = Workers::start(&app);
        let router = http::router(app.clone())?;
        let handle = Handle::new();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let serving = spawn_server(listener, tls, handle.clone(), router)?;
        let url = format!("{scheme}://{address}");
        tracing::info!(url, version = env!("CARGO_PKG_VERSION"), "serving");
        Ok(Self { address, url, handle, serving, app, workers, clock, database, deadline, signals, hangup })
    }

    /// Serves until SIGTERM or Ctrl-C, also one that came while it started, or until its terminal is closed; then
    /// [`Service::stop`]s. Without a terminal, SIGHUP asks for nothing: certificates are read again by themselves.
    ///
    /// # Errors
    /// When the end is not orderly.
    pub async fn run(mut self) -> Result<()> {
        let [terminate, interrupt] = &mut self.signals;
        let has_terminal = std::io::stdin().is_terminal();
        let mut closed = async || {
            while self.hangup.recv().await.is_some() && !has_terminal {
                tracing::info!("SIGHUP changes nothing: a new configuration needs a restart");
            }
        };
        tokio::select! {
            _ = terminate.recv() => {},
            _ = interrupt.recv() => {},
            () = closed() => {},
            never = self.database.keep_alive() => match never {},
        }
        self.stop().await
    }

    /// Takes no new connection, lets requests in flight end within the deadline, then closes the database.
    ///
    /// # Errors
    /// When the embedded database does not stop.
    pub async fn stop(self) -> Result<()> {
        tracing::info!(deadline = ?self.deadline, "stopping: requests in flight may end");
        let end = Instant::now() + self.deadline;
        self.app.stopping.cancel();
        self.handle.graceful_shutdown(Some(self.deadline));
        self.clock.stop().await;
        self.workers.stop(self.deadline).await;
        if let Ok(Err(error)) = self.serving.await {
            tracing::warn!(%error, "the server ended with an error");
        }
        if tokio::time::timeout_at(end.max(Instant::now() + FAREWELL), self.app.pool.close()).await.is_err() {
            tracing::warn!("the database does not answer; its connections are cut");
        }
        self.database.close().await?;
        tracing::info!("stopped");
        Ok(())
    }
}

fn listen_to(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|error| Error::Environment(format!("cannot listen to signals: {error}")))
}

/// Empties the buffers of measured durations again and again.
async fn tidy(metrics: PrometheusHandle) {
    loop {
        tokio::time::sleep(METRICS_UPKEEP).await;
        metrics.run_upkeep();
    }
}

/// Brings the database up to date; when it is away or takes its time, that goes on in the background.
async fn prepare(app: &App) -> Result<()> {
    let (sender, first) = oneshot::channel();
    tokio::spawn(keep_preparing(app.clone(), sender));
    match tokio::time::timeout(FIRST_LOOK, first).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) | Err(_) => {
            tracing::warn!("the database is away or in use; requests are refused until it is up to date");
            Ok(())
        }
    }
}

/// Tries until the database is up to date. Tells how it went the first time, unless that was a passing fault.
async fn keep_preparing(app: App, first: oneshot::Sender<Result<()>>) {
    let mut first = Some(first);
    loop {
        let outcome = app.prepare().await;
        if outcome.is_ok() {
            app.is_ready.store(true, Ordering::Release);
        }
        let told = first.take().filter(|_| outcome.as_ref().err().is_none_or(|error| !error.is_retryable()));
        let untold = match told {
            Some(told) => told.send(outcome).err(),
            None => Some(outcome),
        };
        match untold {
            None => return,
            Some(Ok(())) => return tracing::info!("the database is up to date"),
            Some(Err(error)) => tracing::warn!(error = error.report(), "the database is not ready"),
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

fn resolve(config: &Config) -> Result<SocketAddr> {
    let listen = config.listen();
    let mut found = listen.to_socket_addrs().map_err(|error| {
        Error::Environment(format!(
            "server.host and server.port `{listen}` are no address: {error}; HOST, server.host or --listen sets it"
        ))
    })?;
    found.next().ok_or_else(|| Error::Environment(format!("server.host `{listen}` has no address")))
}

fn listen(address: SocketAddr, idle: Duration) -> Result<TcpListener> {
    let fault =
        |error| Error::Environment(format!("cannot listen on {address}: {error}; choose another with --listen"));
    let listener = TcpListener::bind(address).map_err(fault)?;
    listener.set_nonblocking(true).map_err(fault)?;
    // Connections have this of their listener. Else the beginning of an answer holds back its end until the client has
    // acknowledged it, which it does after 40 ms.
    socket2::SockRef::from(&listener).set_tcp_nodelay(true).map_err(fault)?;
    limit_silence(&listener, idle).map_err(fault)?;
    Ok(listener)
}

/// Lets go of clients that take nothing of an answer for so long, or are away: each holds a connection, and the file that it
/// is sent. Connections have this of their listener.
#[cfg(target_os = "linux")]
fn limit_silence(listener: &TcpListener, idle: Duration) -> std::io::Result<()> {
    socket2::SockRef::from(listener).set_tcp_user_timeout(Some(idle))
}

/// Only Linux can.
#[cfg(not(target_os = "linux"))]
fn limit_silence(_: &TcpListener, _: Duration) -> std::io::Result<()> {
    Ok(())
}

/// A service that only this machine can reach makes itself a token; any other must be given one.
fn ensure_token(config: &mut Config, address: SocketAddr) -> Result<()> {
    if config.has_tokens() {
        return Ok(());
    }
    if !address.ip().is_loopback() {
        return Err(Error::Environment(format!(
            "refusing to serve on {address} without an access token: set INGEST_TOKEN or BEARER_TOKEN, or add \
             [[auth.tokens]] (see `nvd-support-car token new`), or listen on 127.0.0.1"
        )));
    }
    let file = config.secrets_dir().join(GENERATED_TOKEN);
    config.auth.bearer_token = Some(Secret::from(secrets::keep(&file, TOKEN_PREFIX)?));
    tracing::info!(file = %file.display(), "no access token is configured; one with all scopes lies in this file");
    Ok(())
}

async fn tls(config: &Config) -> Result<Option<RustlsConfig>> {
    let (Some(certificate), Some(key)) = (&config.server.cert_path, &config.server.key_path) else {
        return Ok(None);
    };
    let tls = RustlsConfig::from_pem_file(certificate, key).await.map_err(|error| {
        Error::Environment(format!(
            "{} and {} are no certificate and key: {error}",
            certificate.display(),
            key.display()
        ))
    })?;
    tokio::spawn(reload(tls.clone(), certificate.clone(), key.clone()));
    Ok(Some(tls))
}

/// Takes changed certificate files into use without a restart.
async fn reload(tls: RustlsConfig, certificate: PathBuf, key: PathBuf) {
    let mut known = (changed(&certificate), changed(&key));
    loop {
        tokio::time::sleep(CERTIFICATE_CHECK).await;
        let now = (changed(&certificate), changed(&key));
        if now == known {
            continue;
        }
        match tls.reload_from_pem_file(&certificate, &key).await {
            Ok(()) => {
                tracing::info!("certificate reloaded");
                known = now;
            }
            // Half written: the next look finds the rest.
            Err(error) => tracing::warn!(%error, "the changed certificate cannot be used yet"),
        }
    }
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn spawn_server(
    listener: TcpListener,
    tls: Option<RustlsConfig>,
    handle: Handle<SocketAddr>,
    router: Router,
) -> Result<tokio::task::JoinHandle<std::io::Result<()>>> {
    let fault = |error: std::io::Error| Error::Environment(error.to_string());
    let service = router.into_make_service();
    Ok(match tls {
        Some(tls) => {
            let mut server = axum_server::from_tcp_rustls(listener, tls).map_err(fault)?.handle(handle);
            limit_heads(server.http_builder());
            tokio::spawn(server.serve(service))
        }
        None => {
            // Without TLS nobody asks for HTTP/2, and until it is told, a client that sends nothing has no limit.
            let mut server = axum_server::from_tcp(listener).map_err(fault)?.handle(handle).http1_only();
            limit_heads(server.http_builder());
            tokio::spawn(server.serve(service))
        }
    })
}

/// Lets go of clients that never end the head of a request, or vanish between two: each holds one of the process's open
/// files.
fn limit_heads(http: &mut Builder<TokioExecutor>) {
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
}
