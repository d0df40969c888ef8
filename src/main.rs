//! The command line: what each command reads, prints and exits with.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use mimalloc::MiMalloc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use warmkey::app::Replica;
use warmkey::config::source::{self, Seen};
use warmkey::config::{Config, Plan, StoreChoice};
use warmkey::health::operator::OperatorCommand;
use warmkey::operate::line::{SessionLine, TokenLine, UsageLine};
use warmkey::operate::{self, Failure};
use warmkey::probe::{self, Probe};
use warmkey::process::{self, Descriptors};
use warmkey::server::listener::Listener;
use warmkey::simulator::Simulator;
use warmkey::task::Tasks;
use warmkey::telemetry;
use warmkey::telemetry::work::WorkSpans;

/// MiMalloc puts objects of one size together, so that small turns and slow streams cost less than
/// with the system's allocator. `.cargo/config.toml` turns huge pages off and makes MiMalloc return
/// large memory at once, so that no unused memory is kept.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The command line or the configuration cannot run (sysexits.h: EX_USAGE).
const BAD_CONFIGURATION: u8 = 64;

/// Time for the last log lines to be written.
const LAST_LINES: Duration = Duration::from_millis(250);

/// Keeps every Codex session on the upstream key whose prompt cache is warm.
#[derive(Parser)]
#[command(name = "warmkey", version)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one replica of the gateway
    Serve(File),
    /// Play Codex-shaped sessions against a simulated upstream and print what the prompt cache
    /// saved
    Demo,
    /// Run the simulated upstream alone
    Simulate(Simulate),
    /// Validate the configuration, reach store and ledger, and say what would run
    Check(File),
    /// Give an operator's command for a key or an organization, through the admin listener of any
    /// replica
    Key(Operate),
    /// Ask a running replica whether it is well, or play a session of two turns
    Probe(Ask),
    /// Make, list or revoke tokens of clients in the ledger; running replicas know within 5 s
    Token(TokenLine),
    /// Show tokens and cost by client, key, organization, model or day, from the ledger
    Usage(UsageLine),
    /// Show one session: where it is bound, what was decided about it, and its turns
    Session(SessionLine),
}

#[derive(clap::Args)]
struct File {
    /// The configuration file; by default warmkey.toml, if it exists
    #[arg(long)]
    config: Option<PathBuf>,
}

#[derive(clap::Args)]
struct Simulate {
    #[command(flatten)]
    file: File,
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1:9100")]
    listen: SocketAddr,
}

#[derive(clap::Args)]
struct Operate {
    #[command(subcommand)]
    command: KeyCommand,
    /// The configuration file, which names the admin listener and its token
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    /// The admin listener, in place of the configured one
    #[arg(long, global = true, value_name = "URL")]
    admin: Option<String>,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Show all keys and their state
    List,
    /// Take the key out of use; other keys of its organization serve its sessions, which stay bound
    /// to it
    Disable(KeyTarget),
    /// Put the key back in use, after disable or drain
    Enable(KeyTarget),
    /// Give the key no new sessions, and move its sessions for good, each at its next turn
    Drain(KeyTarget),
    /// Forget what is known against the key, try it again, and show what its upstream answers
    Probe(KeyTarget),
}

#[derive(clap::Args)]
struct KeyTarget {
    /// The id of a key, or org:ID for all keys of an organization
    id: String,
}

#[derive(clap::Args)]
struct Ask {
    #[command(subcommand)]
    question: Question,
    /// The configuration, which says where the replica listens and who may call
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    /// The admin listener, in place of the configured one
    #[arg(long, global = true, value_name = "URL")]
    admin: Option<String>,
}

#[derive(Subcommand)]
enum Question {
    /// Ask whether the replica runs
    Live,
    /// Ask whether the replica takes new turns; a draining replica does not
    Ready,
    /// Play two turns as the first client of the configuration, and fail unless one key serves both
    Session {
        /// The base_url of clients, in place of the configured listener
        #[arg(long, value_name = "URL")]
        url: Option<String>,
        /// The model to ask for; by default the first that the client may, or gpt-5.4
        #[arg(long)]
        model: Option<String>,
    },
}

fn main() -> ExitCode {
    let line = match Line::try_parse() {
        Ok(line) => line,
        Err(other) => return instead_of_running(&other),
    };
    process::forbid_cores();
    let descriptors = Descriptors::raise();
    let runtime = match runtime().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.to_string()),
    };
    let code = runtime.block_on(async {
        match line.command {
            Command::Serve(file) => serve(&file).await,
            Command::Demo => demo().await,
            Command::Simulate(simulate) => self::simulate(&simulate).await,
            Command::Check(file) => check(&file, descriptors).await,
            Command::Key(operate) => key(&operate).await,
            Command::Probe(ask) => probe(&ask).await,
            Command::Token(line) => token(&line).await,
            Command::Usage(line) => print_result(line.run().await),
            Command::Session(line) => print_result(line.run().await),
        }
    });
    // Tasks that did not end in time lose their connections when the process exits.
    runtime.shutdown_background();
    telemetry::log::flush(LAST_LINES);
    code
}

/// Prints the help or version that was asked for, or the fault of the command line.
fn instead_of_running(other: &clap::Error) -> ExitCode {
    // A print fails only if its reader has gone, and then nothing is missing.
    let _ = other.print();
    if other.use_stderr() { ExitCode::from(BAD_CONFIGURATION) } else { ExitCode::SUCCESS }
}

/// A thread for each core, or as many as TOKIO_WORKER_THREADS says. A single core is served best by
/// a single thread that shares nothing.
fn runtime() -> tokio::runtime::Builder {
    let named = std::env::var("TOKIO_WORKER_THREADS").ok().and_then(|count| count.parse().ok());
    match named.or_else(|| std::thread::available_parallelism().ok().map(usize::from)) {
        Some(1) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    }
}

async fn serve(file: &File) -> ExitCode {
    let (seen, plan) = match plan(file) {
        Ok(both) => both,
        Err(code) => return code,
    };
    let work = telemetry::start(&plan.fixed.config.telemetry);
    run(file, seen, plan, &work).await
}

/// Runs a replica until it is told to stop.
async fn run(file: &File, seen: Seen, plan: Plan, work: &WorkSpans) -> ExitCode {
    let (mut terminate, mut interrupt) = match signals() {
        Ok(both) => both,
        Err(error) => return lost(&error.to_string()),
    };
    // Without this handler, SIGHUP would end the process and every turn with it, even during the
    // start.
    let hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => return lost(&error.to_string()),
    };
    let replica = match Replica::start(plan, None, work).await {
        Ok(replica) => replica,
        Err(error) => return lost(&error),
    };
    let (clients, admin) = (replica.client_address, replica.admin_address);
    say(&format!("listening on http://{clients} (admin http://{admin})\n"));
    replica.follow(file.config.clone(), seen, hangup);
    asked_to_stop(&mut terminate, &mut interrupt).await;
    match replica.stop(asked_to_stop(&mut terminate, &mut interrupt)).await {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn signals() -> std::io::Result<(Signal, Signal)> {
    Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
}

async fn asked_to_stop(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn demo() -> ExitCode {
    match warmkey::demo::run(&mut std::io::stdout()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => failed(&why),
    }
}

async fn simulate(simulate: &Simulate) -> ExitCode {
    let simulator = Config::load(simulate.file.config.as_deref()).and_then(|config| {
        telemetry::start(&config.telemetry);
        let simulator = Simulator::new(&config.sim)?;
        simulator.admits(simulate.listen)?;
        Ok((simulator, config.server.header_timeout.0))
    });
    let (simulator, header_timeout) = match simulator {
        Ok(both) => both,
        Err(fault) => {
            complain(&format!("{fault}\n"));
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let bound = Listener::bind(simulate.listen, header_timeout)
        .and_then(|listener| Ok((listener.address()?, listener)));
    let (address, listener) = match bound {
        Ok(bound) => bound,
        Err(error) => return failed(&format!("cannot listen on {}: {error}", simulate.listen)),
    };
    let (mut terminate, mut interrupt) = match signals() {
        Ok(both) => both,
        Err(error) => return failed(&error.to_string()),
    };
    say(&format!("simulating on http://{address}\n"));
    tokio::select! {
        () = simulator.serve(listener, Tasks::new(), CancellationToken::new()) => {}
        () = asked_to_stop(&mut terminate, &mut interrupt) => {}
    }
    ExitCode::SUCCESS
}

async fn check(file: &File, descriptors: Descriptors) -> ExitCode {
    let plan = match plan(file) {
        Ok((_, plan)) => plan,
        Err(code) => return code,
    };
    say(&format!("{}\n", warmkey::check::describe(&plan, descriptors)));
    if let StoreChoice::Redis(_) = plan.fixed.store {
        if let Err(fault) = warmkey::check::reach_store(&plan).await {
            complain(&format!("{fault}\n"));
            return ExitCode::from(BAD_CONFIGURATION);
        }
        say("The store does what serving needs.\n");
    }
    if plan.fixed.ledger.is_some() {
        if let Err(fault) = warmkey::check::reach_ledger(&plan).await {
            complain(&format!("{fault}\n"));
            return ExitCode::from(BAD_CONFIGURATION);
        }
        say("The ledger does what serving needs.\n");
    }
    ExitCode::SUCCESS
}

async fn key(Operate { command, config, admin }: &Operate) -> ExitCode {
    let asking = async {
        let replica = operate::AdminClient::find(config.as_deref(), admin.as_deref())?;
        match command {
            KeyCommand::List => replica.list().await,
            KeyCommand::Disable(KeyTarget { id }) => {
                replica.give(id, OperatorCommand::Disable).await
            }
            KeyCommand::Enable(KeyTarget { id }) => replica.give(id, OperatorCommand::Enable).await,
            KeyCommand::Drain(KeyTarget { id }) => replica.give(id, OperatorCommand::Drain).await,
            KeyCommand::Probe(KeyTarget { id }) => replica.give(id, OperatorCommand::Probe).await,
        }
    };
    print_result(asking.await)
}

async fn probe(Ask { question, config, admin }: &Ask) -> ExitCode {
    let (config, admin) = (config.as_deref(), admin.as_deref());
    print_result(match question {
        Question::Live => Probe::Live.run(config, admin).await,
        Question::Ready => Probe::Ready.run(config, admin).await,
        Question::Session { url, model } => {
            match probe::Session::new(config, url.as_deref(), admin, model.as_deref()) {
                Ok(session) => session.play().await,
                Err(failure) => Err(failure),
            }
        }
    })
}

async fn token(line: &TokenLine) -> ExitCode {
    print_result(line.run().await.map(|(text, note)| {
        complain(&note);
        text
    }))
}

/// Prints a command's output, or its error.
fn print_result(result: Result<String, Failure>) -> ExitCode {
    match result {
        Ok(said) => {
            say(&said);
            ExitCode::SUCCESS
        }
        Err(Failure::Configuration(fault)) => {
            complain(&format!("{fault}\n"));
            ExitCode::from(BAD_CONFIGURATION)
        }
        Err(Failure::Other(why)) => failed(&why),
    }
}

/// Prints to standard output. A print fails only if its reader has gone or its disk is full.
fn say(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints to standard error.
fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn plan(file: &File) -> Result<(Seen, Plan), ExitCode> {
    let (seen, plan) = source::read(file.config.as_deref());
    let plan = plan.map_err(|faults| {
        for fault in faults {
            complain(&format!("{fault}\n"));
        }
        ExitCode::from(BAD_CONFIGURATION)
    });
    Ok((seen, plan?))
}

/// Like [`failed`], for use once logging has started: the log's own thread writes the line, so the
/// runtime never waits for standard error.
fn lost(why: &str) -> ExitCode {
    let _ = telemetry::log::LogLine.write_all(format!("{why}\n").as_bytes());
    ExitCode::FAILURE
}

fn failed(why: &str) -> ExitCode {
    complain(&format!("{why}\n"));
    ExitCode::FAILURE
}
