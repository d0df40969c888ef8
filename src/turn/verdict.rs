//! Decides what follows from an attempt, before the client has received any byte. Pure.

use std::time::{Duration, SystemTime};

use http::StatusCode;
use http::header::RETRY_AFTER;

use crate::error::{Error, ErrorKind};
use crate::health::diagnose::{Concern, Judgement, Met, ModelUse, Scope, Shortage, Trouble, judge};
use crate::key::Key;
use crate::limit;
use crate::metrics::Reason;
use crate::outcome::{Answer, Outcome, Refusal};

/// A header that each answer of a Warmkey has.
const INNER: &str = "x-warmkey-turn";
/// `Retry-After` for a turn that failed once.
const SOON: Duration = Duration::from_secs(1);
/// `Retry-After` for an overloaded model.
const RELIEF: Duration = Duration::from_secs(5);

/// The decision about an attempt's outcome.
pub enum Verdict {
    /// The client receives the answer as it is.
    Deliver(Answer),
    /// The upstream refuses the credential of the key or of its organization. A probe decides. If
    /// the upstream accepts the key in the probe, the client receives this answer as a 403.
    Doubted(Answer, Scope),
    /// The quota of the project or the organization is used up; the turn goes to another key.
    Exhausted(Scope),
    /// The key's project is rate-limited for this use of a model, for this time.
    Limited(Duration),
    /// The key does not serve this turn for this time, but it may serve other turns. If no other
    /// key serves this turn, the client receives an error.
    Deferred(Duration),
    /// The organization's traffic grows too fast. The client receives this answer.
    TooSteep(Answer),
    /// The upstream says that the key's project may not use this model. The client receives this
    /// answer.
    Denied(Answer),
    /// The upstream failed, or may have failed. The next attempt may succeed, with the same key or
    /// a sibling. If there is no next attempt, the client receives this result.
    Again(Result<Answer, Error>),
    /// The key's organization cannot open the session's history. If no other organization can be
    /// tried, the client receives this answer.
    Foreign(Answer),
    /// No other key would help.
    GiveUp(Error, Reason),
}

impl Verdict {
    /// Why the turn does not simply end with the attempt's outcome.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Deliver(_) => None,
            Self::Doubted(..) => Some(Reason::Rejected),
            Self::Exhausted(_) => Some(Reason::Exhausted),
            Self::Limited(_) | Self::Deferred(_) => Some(Reason::Limited),
            Self::TooSteep(_) => Some(Reason::TooSteep),
            Self::Denied(_) => Some(Reason::NoAccess),
            Self::Again(_) => Some(Reason::Failed),
            Self::Foreign(_) => Some(Reason::Forgotten),
            Self::GiveUp(_, reason) => Some(*reason),
        }
    }
}

/// Inputs of a verdict beside the outcome.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    met: Met,
    asked: ModelUse<'a>,
    /// The name that the upstream has for the model, if it differs from the client's.
    sent: Option<&'a str>,
    /// The upstream is another Warmkey: its answers are about the keys behind it.
    is_gateway: bool,
}

impl<'a> Case<'a> {
    pub fn new(key: &'a Key, met: Met, asked: ModelUse<'a>) -> Self {
        let host = &key.upstream.host;
        Self { met, asked, sent: host.name_of(asked.model), is_gateway: host.is_gateway() }
    }
}

/// Decides about an outcome. `resends`: a turn that may already have been served is sent again.
pub fn decide(outcome: Outcome, case: Case<'_>, resends: bool, now: SystemTime) -> Verdict {
    let outcome = if case.is_gateway { last_word(outcome) } else { outcome };
    let uncertain = |error: Error| {
        if resends { Verdict::Again(Err(error)) } else { Verdict::GiveUp(error, Reason::Failed) }
    };
    match outcome {
        Outcome::Answered(answer) => Verdict::Deliver(answer),
        Outcome::Refused(Refusal { answer, mut error }) => {
            error.rename_model(case.asked.model, case.sent);
            match judge((case.met, case.asked), answer.status, &error, &answer.headers, now) {
                Judgement::Request(concern) => of_request(concern, answer),
                Judgement::Key => Verdict::Doubted(answer, Scope::Key),
                Judgement::Organization(Trouble::Refused) => {
                    Verdict::Doubted(answer, Scope::Organization)
                }
                Judgement::Project => Verdict::Exhausted(Scope::Project),
                Judgement::Organization(Trouble::Spent) => Verdict::Exhausted(Scope::Organization),
                Judgement::Model(Shortage::Limited(wait)) | Judgement::Tier(wait) => {
                    Verdict::Limited(limit::wait_or_usual(wait))
                }
                Judgement::Model(Shortage::Denied) => Verdict::Denied(answer),
                Judgement::Transport(wait) => Verdict::Deferred(limit::wait_or_usual(wait)),
                Judgement::Host => Verdict::Again(Ok(passing(answer, SOON))),
            }
        }
        Outcome::NoDescriptor(cause) => {
            let error = Error::new(
                ErrorKind::NoKeyAvailable,
                "The gateway has too many open files: too many connections are open. \
                 Please try again in a moment.",
            )
            .retry_after(SOON)
            .because(cause);
            Verdict::GiveUp(error, Reason::Unreachable)
        }
        // The host is at fault, never the key.
        Outcome::Unreachable(cause) => {
            let error =
                Error::new(ErrorKind::UpstreamUnreachable, "The upstream could not be reached.")
                    .because(cause);
            Verdict::GiveUp(error, Reason::Unreachable)
        }
        // The upstream has not processed the turn, so the gateway sends it again, whatever the
        // cause.
        Outcome::Unprocessed(cause) => Verdict::Again(Err(Error::new(
            ErrorKind::UpstreamUnreachable,
            "The upstream does not take the request at the moment.",
        )
        .retry_after(SOON)
        .because(cause))),
        // The turn may have been served, and its answer cannot be passed on.
        Outcome::Broken(cause) | Outcome::Unreadable(cause) => {
            let error = Error::new(
                ErrorKind::UpstreamUnreachable,
                "The upstream's answer breaks the protocol and cannot be passed on.",
            )
            .because(cause);
            Verdict::GiveUp(error, Reason::Failed)
        }
        // The upstream may have served and billed the turn, so the client decides whether to send
        // it again.
        Outcome::Interrupted(cause) => uncertain(
            Error::new(
                ErrorKind::UpstreamInterrupted,
                "The connection to the upstream was lost before it answered.",
            )
            .retry_after(SOON)
            .because(cause),
        ),
        Outcome::Silent => uncertain(
            Error::new(ErrorKind::UpstreamTimeout, "The upstream did not answer in time.")
                .retry_after(SOON),
        ),
        Outcome::Inexpressible(error) => Verdict::GiveUp(error, Reason::Inexpressible),
        // On this answer, Codex uses HTTP at once and for good, with the same key.
        Outcome::NotSpoken => {
            let error = Error::new(
                ErrorKind::UpgradeRequired,
                "The upstream of this session does not speak WebSocket: use HTTP.",
            );
            Verdict::GiveUp(error, Reason::Unreachable)
        }
    }
}

/// Decides about an answer that concerns its request alone.
fn of_request(concern: Concern, answer: Answer) -> Verdict {
    match concern {
        Concern::Passed => Verdict::Deliver(answer),
        Concern::Forbidden => Verdict::Deliver(as_403(answer)),
        Concern::Busy(wait) => Verdict::Deliver(passing(answer, limit::wait_or_usual(wait))),
        Concern::TooSteep(wait) => Verdict::TooSteep(passing(answer, limit::wait_or_usual(wait))),
        Concern::Foreign => Verdict::Foreign(answer),
        Concern::Overloaded(wait) => Verdict::GiveUp(overloaded(wait), Reason::Overloaded),
    }
}

/// Turns a 401 that is not about the key into a 403. The client would take a 401 for the refusal of
/// its own token.
pub fn as_403(answer: Answer) -> Answer {
    Answer { status: StatusCode::FORBIDDEN, ..answer }
}

/// The error after a 401 that no probe has decided. The client retries, and another probe decides.
/// The upstream's own words stay hidden, because they may be about the key.
pub fn undecided() -> Error {
    Error::new(
        ErrorKind::NoKeyAvailable,
        "The upstream refused the request, and did not say in time whether it refuses the key. \
         Please try again in a moment.",
    )
    .retry_after(SOON)
}

/// Returns the outcome of a turn at another Warmkey. If that gateway itself has refused the turn,
/// it has already waited and tried its keys, so its answer passes. Only a refused token is this
/// gateway's own affair.
fn last_word(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Refused(Refusal { answer, .. })
            if answer.headers.contains_key(INNER) && answer.status != StatusCode::UNAUTHORIZED =>
        {
            Outcome::Answered(answer)
        }
        outcome => outcome,
    }
}

/// Adds a `Retry-After` to a failure that the client may receive. Without it, all clients would
/// retry at once, or give up.
fn passing(mut answer: Answer, wait: Duration) -> Answer {
    answer.headers.entry(RETRY_AFTER).or_insert_with(|| whole_seconds(wait).into());
    answer
}

/// Returns a wait as a `Retry-After` states it: in whole seconds.
pub const fn whole_seconds(wait: Duration) -> u64 {
    let seconds = wait.as_secs() + (wait.subsec_nanos() > 0) as u64;
    if seconds == 0 { 1 } else { seconds }
}

/// Returns the error for a model that is overloaded for all callers. On the upstream's own error
/// code, Codex would give up.
pub fn overloaded(wait: Option<Duration>) -> Error {
    Error::new(
        ErrorKind::NoKeyAvailable,
        "The model is overloaded, and no other key would help. Please try again in a moment.",
    )
    .retry_after(wait.unwrap_or(RELIEF))
}

#[cfg(test)]
mod tests;
