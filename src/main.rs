//! The command line: what each command reads, prints and exits with.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line talks to its user")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mimalloc::MiMalloc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use warmkey::app::Replica;
use warmkey::config::source::{self, Seen};
use warmkey::config::{Config, Plan, StoreChoice};
use warmkey::health::operator::Verb;
use warmkey::operate::line::{SessionLine, TokenLine, UsageLine};
use warmkey::operate::{self, Failure};
use warmkey::server::listener::Listener;
use warmkey::simulator::Simulator;
use warmkey::task::Tasks;
use warmkey::telemetry;

/// What has one size lies together: an event of a slow stream and a small turn cost less than with the system's allocator. It asks
/// for no huge pages, and gives large memory back at once (`.cargo/config.toml`): both would take memory that nobody uses.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The command line or the configuration cannot run (sysexits.h: EX_USAGE).
const BAD_CONFIGURATION: u8 = 64;

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
    /// Play Codex-shaped sessions against a simulated upstream and print what the prompt cache made of them
    Demo,
    /// Run the simulated upstream alone
    Simulate(Simulate),
    /// Validate the configuration, reach store and ledger, and say what would run
    Check(File),
    /// Say an operator's word on a key or an organization, through the admin listener of any one replica
    Key(Operate),
    /// Make, list or revoke tokens of clients in the ledger; running replicas know within 5 s
    Token(TokenLine),
    /// Show tokens and cost by client, key, organization, model or day, from the ledger
    Usage(UsageLine),
    /// Show one session: where it is bound, what was decided about it, and its turns
    Session(SessionLine),
}

#[derive(clap::Args)]
struct File {
    /// The configuration; without it warmkey.toml, where there is one
    #[arg(long)]
    config: Option<PathBuf>,
}

#[derive(clap::Args)]
struct Simulate {
    #[command(flatten)]
    file: File,
    /// Where it listens
    #[arg(long, default_value = "127.0.0.1:9100")]
    listen: SocketAddr,
}

#[derive(clap::Args)]
struct Operate {
    #[command(subcommand)]
    word: Word,
    /// The configuration, which says where the admin listener is and what it wants to be shown
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    /// The admin listener, in place of the configured one
    #[arg(long, global = true, value_name = "URL")]
    admin: Option<String>,
}

#[derive(Subcommand)]
enum Word {
    /// Show all keys and how they are
    List,
    /// Out of use: its sessions are served by others of its organization, and stay its own
    Disable(Meant),
    /// In use again, after disable or drain
    Enable(Meant),
    /// No new sessions, and those that it has go elsewhere for good, each at its next turn
    Drain(Meant),
    /// Forget what was met, try it again, and say what its upstream answers
    Probe(Meant),
}

#[derive(clap::Args)]
struct Meant {
    /// A key's id, or org:ID for all keys of an organization
    id: String,
}

fn main() -> ExitCode {
    let line = match Line::try_parse() {
        Ok(line) => line,
        Err(other) => return instead_of_running(&other),
    };
    let runtime = match runtime().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.to_string()),
    };
    let code = runtime.block_on(async {
        match line.command {
            Command::Serve(file) => serve(&file).await,
            Command::Demo => demo().await,
            Command::Simulate(simulate) => self::simulate(&simulate).await,
            Command::Check(file) => check(&file).await,
            Command::Key(operate) => key(&operate).await,
            Command::Token(line) => token(&line).await,
            Command::Usage(line) => said(line.run().await),
            Command::Session(line) => said(line.run().await),
        }
    });
    // What is left was told to end and did not: its connections are cut with the process.
    runtime.shutdown_background();
    code
}

/// Prints the help or the version that was asked for, or what is wrong with the command line.
fn instead_of_running(other: &clap::Error) -> ExitCode {
    // A reader that has gone needs no help.
    let _ = other.print();
    if other.use_stderr() { ExitCode::from(BAD_CONFIGURATION) } else { ExitCode::SUCCESS }
}

/// A thread for each core, or for as many as TOKIO_WORKER_THREADS says. One core is served best by one thread that shares nothing.
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
    telemetry::start(&plan.fixed.config.telemetry);
    let (mut terminate, mut interrupt) = match signals() {
        Ok(both) => both,
        Err(error) => return failed(&error.to_string()),
    };
    // It would end the process, and every turn with it, from the first moment on.
    let hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => return failed(&error.to_string()),
    };
    let replica = match Replica::start(plan, None).await {
        Ok(replica) => replica,
        Err(error) => return failed(&error),
    };
    println!("listening on http://{} (admin http://{})", replica.client_address, replica.admin_address);
    replica.follow(file.config.clone(), seen, hangup);
    told(&mut terminate, &mut interrupt).await;
    match replica.stop(told(&mut terminate, &mut interrupt)).await {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn signals() -> std::io::Result<(Signal, Signal)> {
    Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
}

async fn told(terminate: &mut Signal, interrupt: &mut Signal) {
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
            eprintln!("{fault}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let bound = Listener::bind(simulate.listen, header_timeout).and_then(|listener| Ok((listener.address()?, listener)));
    let (address, listener) = match bound {
        Ok(bound) => bound,
        Err(error) => return failed(&format!("cannot listen on {}: {error}", simulate.listen)),
    };
    let (mut terminate, mut interrupt) = match signals() {
        Ok(both) => both,
        Err(error) => return failed(&error.to_string()),
    };
    println!("simulating on http://{address}");
    tokio::select! {
        () = simulator.serve(listener, Tasks::new(), CancellationToken::new()) => {}
        () = told(&mut terminate, &mut interrupt) => {}
    }
    ExitCode::SUCCESS
}

async fn check(file: &File) -> ExitCode {
    let plan = match plan(file) {
        Ok((_, plan)) => plan,
        Err(code) => return code,
    };
    println!("{}", warmkey::check::describe(&plan));
    if let StoreChoice::Redis(_) = plan.fixed.store {
        if let Err(fault) = warmkey::check::reach_store(&plan).await {
            eprintln!("{fault}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
        println!("The store does what serving needs.");
    }
    if plan.fixed.ledger.is_some() {
        if let Err(fault) = warmkey::check::reach_ledger(&plan).await {
            eprintln!("{fault}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
        println!("The ledger does what serving needs.");
    }
    ExitCode::SUCCESS
}

async fn key(Operate { word, config, admin }: &Operate) -> ExitCode {
    let asking = async {
        let replica = operate::Replica::find(config.as_deref(), admin.as_deref())?;
        match word {
            Word::List => replica.list().await,
            Word::Disable(Meant { id }) => replica.say(id, Verb::Disable).await,
            Word::Enable(Meant { id }) => replica.say(id, Verb::Enable).await,
            Word::Drain(Meant { id }) => replica.say(id, Verb::Drain).await,
            Word::Probe(Meant { id }) => replica.say(id, Verb::Probe).await,
        }
    };
    said(asking.await)
}

async fn token(line: &TokenLine) -> ExitCode {
    said(line.run().await.map(|(text, note)| {
        eprint!("{note}");
        text
    }))
}

/// Prints what a command has to say, or why it has nothing.
fn said(result: Result<String, Failure>) -> ExitCode {
    match result {
        Ok(said) => {
            print!("{said}");
            ExitCode::SUCCESS
        }
        Err(Failure::Configuration(fault)) => {
            eprintln!("{fault}");
            ExitCode::from(BAD_CONFIGURATION)
        }
        Err(Failure::Other(why)) => failed(&why),
    }
}

fn plan(file: &File) -> Result<(Seen, Plan), ExitCode> {
    let (seen, plan) = source::read(file.config.as_deref());
    let plan = plan.map_err(|faults| {
        for fault in faults {
            eprintln!("{fault}");
        }
        ExitCode::from(BAD_CONFIGURATION)
    });
    Ok((seen, plan?))
}

fn failed(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::FAILURE
}
