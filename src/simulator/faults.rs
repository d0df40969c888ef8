//! The scripted faults, and which of them strikes a request.
//!
//! A fault strikes a given number of times, or until it is cleared. Of all faults that match, the
//! first one added wins.

use super::fault::{At, Fault, Scope, Target};
use super::key::Key;

/// Faults kept at once.
const MOST_FAULTS: usize = 10_000;

/// The faults that are scripted now.
#[derive(Debug, Default)]
pub struct Faults(Vec<Fault>);

impl Faults {
    pub fn add(&mut self, fault: Fault) -> Result<(), String> {
        fault.check()?;
        if self.0.len() >= MOST_FAULTS {
            return Err(format!("{MOST_FAULTS} faults are enough"));
        }
        self.0.push(fault);
        Ok(())
    }

    /// Clears the faults that name what `scope` names. An empty scope clears all.
    pub fn clear(&mut self, scope: &Scope) {
        self.0.retain(|fault| !fault.is_of(scope));
    }

    /// The fault that strikes this request. The strike is counted.
    pub fn strike(&mut self, target: Target<'_>) -> Option<Fault> {
        let index = self.0.iter().position(|fault| fault.times != Some(0) && fault.fits(target))?;
        if let Some(times) = &mut self.0[index].times {
            *times -= 1;
        }
        let fault = self.0[index].clone();
        if fault.times == Some(0) {
            self.0.remove(index);
        }
        Some(fault)
    }

    /// Returns a lasting fault of the key itself, which a probe meets as well. Does not count the
    /// strike.
    pub fn of_key(&self, key: &Key) -> Option<Fault> {
        let target =
            Target { at: At::Turn, key, model: None, session: None, tier: None, prewarm: false };
        self.0
            .iter()
            .find(|fault| fault.concerns_the_key() && fault.times != Some(0) && fault.fits(target))
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        let text = |text: &str| text.to_owned();
        Key {
            id: text("a-1"),
            organization: text("org-a"),
            project: text("proj-1"),
            region: text("us"),
            masked: text("*"),
            ..Key::default()
        }
    }

    fn strike(faults: &mut Faults, at: At, model: Option<&str>, prewarm: bool) -> Option<Fault> {
        faults.strike(Target { at, key: &key(), model, session: None, tier: None, prewarm })
    }

    fn fault(json: &str) -> Fault {
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    #[test]
    fn fault_strikes_its_scope_as_often_as_scripted() {
        let mut faults = Faults::default();
        faults.add(fault(r#"{"organization":"org-b","status":500}"#)).expect("added");
        faults
            .add(fault(r#"{"key":"a-1","model":"gpt-5.4","status":429,"times":2}"#))
            .expect("added");
        let mut strike = |model| {
            strike(&mut faults, At::Turn, Some(model), false).and_then(|fault| fault.status)
        };
        assert_eq!(
            (strike("gpt-5.5"), strike("gpt-5.4"), strike("gpt-5.4"), strike("gpt-5.4")),
            (None, Some(429), Some(429), None)
        );
    }

    #[test]
    fn key_can_be_healed_and_another_stay_ill() {
        let mut faults = Faults::default();
        faults.add(fault(r#"{"key":"a-1","status":401}"#)).expect("added");
        faults.add(fault(r#"{"model":"gpt-5.4","status":429}"#)).expect("added");
        faults.clear(&Scope { key: Some("b-1".into()), ..Scope::default() });
        assert_eq!(
            strike(&mut faults, At::Turn, None, false).and_then(|fault| fault.status),
            Some(401)
        );
        faults.clear(&Scope { key: Some("a-1".into()), ..Scope::default() });
        assert!(strike(&mut faults, At::Turn, None, false).is_none());
        assert!(strike(&mut faults, At::Turn, Some("gpt-5.4"), false).is_some());
        faults.clear(&Scope::default());
        assert!(strike(&mut faults, At::Turn, Some("gpt-5.4"), false).is_none());
    }

    #[test]
    fn handshake_is_struck_by_its_own_faults_and_by_a_dead_key() {
        let strikes = |json: &str, at| {
            let mut faults = Faults::default();
            faults.add(fault(json)).expect("added");
            strike(&mut faults, at, None, false).is_some()
        };
        for (json, handshake, turn) in [
            (r#"{"status":401}"#, true, true),
            (r#"{"status":429}"#, false, true),
            (r#"{"status":429,"at":"handshake"}"#, true, false),
            (r#"{"status":401,"at":"turn"}"#, false, true),
        ] {
            assert_eq!(
                (strikes(json, At::Handshake), strikes(json, At::Turn)),
                (handshake, turn),
                "{json}"
            );
        }
    }

    #[test]
    fn fault_can_let_prewarms_pass() {
        let mut faults = Faults::default();
        faults.add(fault(r#"{"status":500,"prewarm":false}"#)).expect("added");
        assert!(
            strike(&mut faults, At::Turn, None, true).is_none()
                && strike(&mut faults, At::Turn, None, false).is_some()
        );
    }

    #[test]
    fn probe_meets_a_dead_key_and_does_not_revive_it() {
        let mut faults = Faults::default();
        faults.add(fault(r#"{"key":"a-1","status":401,"times":1}"#)).expect("added");
        assert!(faults.of_key(&key()).is_some() && faults.of_key(&key()).is_some());
        assert!(strike(&mut faults, At::Turn, None, false).is_some());
        assert!(faults.of_key(&key()).is_none());
    }
}
