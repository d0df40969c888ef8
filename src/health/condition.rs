//! The conditions of keys, their subjects, and their spelling on the board. Pure.

use std::fmt;
use std::time::Duration;

use crate::health::diagnose::{Ailment, ModelUse, Scope};
use crate::key::{Key, Tag};

/// The subject of a condition, as all replicas name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    Key(Tag),
    Project(Tag),
    Organization(Tag),
    /// A project's use of a model.
    Model(Tag, Tag),
    /// A project's use of a model in a special service tier.
    Tier(Tag, Tag),
}

impl Subject {
    pub fn of(key: &Key, scope: Scope) -> Self {
        match scope {
            Scope::Key => Self::Key(key.shown_tag),
            Scope::Project => Self::Project(key.quota_tag()),
            Scope::Organization => Self::Organization(key.organization_tag),
        }
    }

    /// `key` by its id and with any secret: the subject of an operator's commands.
    pub const fn of_key_id(key: &Key) -> Self {
        Self::Key(key.tag)
    }

    pub fn model(key: &Key, model: &str) -> Self {
        Self::Model(key.quota_tag(), Tag::of("model", model.as_bytes()))
    }

    /// The use of a model by all keys of an organization that have no configured project. `None`:
    /// `key` has one.
    pub fn shared_model(key: &Key, model: &str) -> Option<Self> {
        key.project
            .is_empty()
            .then(|| Self::Model(key.project_tag, Tag::of("model", model.as_bytes())))
    }

    /// The subject of a limit of `asked`: the use of the model, or of its special tier.
    pub fn of_use(key: &Key, asked: ModelUse<'_>) -> Self {
        Self::tier(key, asked).unwrap_or_else(|| Self::model(key, asked.model))
    }

    pub fn tier(key: &Key, asked: ModelUse<'_>) -> Option<Self> {
        let name = [asked.model, asked.tier?].join("\0");
        Some(Self::Tier(key.quota_tag(), Tag::of("tier", name.as_bytes())))
    }

    /// A unique name of the subject.
    pub fn name(self) -> String {
        Place(self, Class::Illness).to_string()
    }

    /// The kind of the subject, as operators call it.
    pub const fn scope(self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::Project(_) => "project",
            Self::Organization(_) => "organization",
            Self::Model(..) | Self::Tier(..) => "model",
        }
    }

    /// The project whose use of a model the subject is, in a special tier or not.
    pub const fn project_of_model(self) -> Option<Tag> {
        match self {
            Self::Model(project, _) | Self::Tier(project, _) => Some(project),
            _ => None,
        }
    }

    /// `key` and all that it belongs to.
    pub fn all_of(key: &Key) -> [Self; 5] {
        [
            Self::Key(key.tag),
            Self::Key(key.shown_tag),
            Self::Project(key.project_tag),
            Self::Project(key.quota_tag()),
            Self::Organization(key.organization_tag),
        ]
    }

    /// Whether the subject is `key`, something that `key` belongs to, or the use of a model there.
    pub fn concerns(self, key: &Key) -> bool {
        let subject = self.project_of_model().map_or(self, Self::Project);
        Self::all_of(key).contains(&subject)
    }
}

/// A condition of a subject. At most one condition of each [`Class`] holds at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// The upstream refused the key, and has not been asked again yet.
    Suspected,
    /// The upstream refused the key again when asked again.
    Rejected,
    /// The quota is used up.
    Exhausted,
    /// The project is rate-limited for a while.
    Limited,
    /// The project may not use the model.
    NoAccess,
    /// The key was out of use until a moment ago: new sessions return to it gradually.
    Recovering,
    /// A turn has waited for a limit in vain: siblings of the same cache serve for a while.
    Strained,
    /// Operator's command: out of use.
    Disabled,
    /// Operator's command: sessions move to other keys.
    Drained,
    /// Operator's command: in use again, in place of the last command.
    Enabled,
}

/// A group of conditions that exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    Operator,
    Illness,
    Recovery,
}

impl Condition {
    const ALL: [Self; 10] = [
        Self::Suspected,
        Self::Rejected,
        Self::Exhausted,
        Self::Limited,
        Self::NoAccess,
        Self::Recovering,
        Self::Strained,
        Self::Disabled,
        Self::Drained,
        Self::Enabled,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Suspected => "suspected",
            Self::Rejected => "rejected",
            Self::Exhausted => "exhausted",
            Self::Limited => "limited",
            Self::NoAccess => "no_access",
            Self::Recovering => "recovering",
            Self::Strained => "strained",
            Self::Disabled => "disabled",
            Self::Drained => "drained",
            Self::Enabled => "enabled",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|condition| condition.name() == text)
    }

    pub const fn class(self) -> Class {
        match self {
            Self::Suspected | Self::Rejected | Self::Exhausted | Self::Limited | Self::NoAccess => {
                Class::Illness
            }
            Self::Recovering | Self::Strained => Class::Recovery,
            Self::Disabled | Self::Drained | Self::Enabled => Class::Operator,
        }
    }

    /// How long the condition is believed by default. `None`: until another one replaces it.
    pub const fn life(self) -> Option<Duration> {
        match self {
            Self::Suspected | Self::Limited | Self::NoAccess | Self::Recovering => {
                Some(Duration::from_secs(60))
            }
            Self::Strained => Some(Duration::from_secs(30)),
            // A probe asks again long before this time has passed.
            Self::Rejected | Self::Exhausted => Some(Duration::from_secs(24 * 3_600)),
            Self::Disabled | Self::Drained | Self::Enabled => None,
        }
    }

    /// The time between two probes that ask whether the condition still holds. `None`: no probe
    /// asks.
    pub const fn asked_again(self) -> Option<Duration> {
        match self {
            Self::Suspected => Some(Duration::from_secs(5)),
            Self::Rejected => Some(Duration::from_secs(60)),
            Self::Exhausted => Some(Duration::from_secs(600)),
            _ => None,
        }
    }
}

impl From<Ailment> for Condition {
    fn from(ailment: Ailment) -> Self {
        match ailment {
            Ailment::Rejected(_) => Self::Suspected,
            Ailment::Exhausted(_) => Self::Exhausted,
        }
    }
}

/// A place on the board: a subject and a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place(pub Subject, pub Class);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = match self.1 {
            Class::Operator => 'o',
            Class::Illness => 'i',
            Class::Recovery => 'r',
        };
        match self.0 {
            Subject::Key(tag) => write!(f, "{class}k{tag}"),
            Subject::Project(tag) => write!(f, "{class}p{tag}"),
            Subject::Organization(tag) => write!(f, "{class}g{tag}"),
            Subject::Model(project, model) => write!(f, "{class}m{project}{model}"),
            Subject::Tier(project, tier) => write!(f, "{class}t{project}{tier}"),
        }
    }
}

impl Place {
    /// `None`: this version does not know the spelling.
    pub fn parse(text: &str) -> Option<Self> {
        let class = match text.get(..1)? {
            "o" => Class::Operator,
            "i" => Class::Illness,
            "r" => Class::Recovery,
            _ => return None,
        };
        let (kind, tags) = (text.get(1..2)?, text.get(2..)?);
        Some(Self(
            match kind {
                "k" => Subject::Key(Tag::parse(tags)?),
                "p" => Subject::Project(Tag::parse(tags)?),
                "g" => Subject::Organization(Tag::parse(tags)?),
                "m" => {
                    let (project, model) = tags.split_at_checked(Tag::LENGTH)?;
                    Subject::Model(Tag::parse(project)?, Tag::parse(model)?)
                }
                "t" => {
                    let (project, tier) = tags.split_at_checked(Tag::LENGTH)?;
                    Subject::Tier(Tag::parse(project)?, Tag::parse(tier)?)
                }
                _ => return None,
            },
            class,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn condition_excludes_its_own_kind_and_holds_for_its_time() {
        use Condition::{
            Disabled, Drained, Enabled, Exhausted, Limited, NoAccess, Recovering, Rejected,
            Strained, Suspected,
        };
        let (minute, day) = (Some(60), Some(24 * 3_600));
        let expected = [
            (Suspected, Class::Illness, minute),
            (Rejected, Class::Illness, day),
            (Exhausted, Class::Illness, day),
            (Limited, Class::Illness, minute),
            (NoAccess, Class::Illness, minute),
            (Recovering, Class::Recovery, minute),
            (Strained, Class::Recovery, Some(30)),
            (Disabled, Class::Operator, None),
            (Drained, Class::Operator, None),
            (Enabled, Class::Operator, None),
        ];
        let found = expected.map(|(condition, ..)| {
            (condition, condition.class(), condition.life().map(|life| life.as_secs()))
        });
        assert_eq!(found, expected);
        assert_eq!(expected.map(|(condition, ..)| condition), Condition::ALL);
    }

    /// Lists of conditions are sorted by these names: equal names would make their order a chance.
    #[test]
    fn name_of_a_subject_is_unique() {
        let (a, b) = (Tag::of("key", b"a"), Tag::of("model", b"gpt"));
        let mut names = [
            Subject::Key(a),
            Subject::Key(b),
            Subject::Project(a),
            Subject::Organization(a),
            Subject::Model(a, a),
            Subject::Model(a, b),
            Subject::Tier(a, b),
        ]
        .map(Subject::name);
        names.sort();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }

    /// Pins the notes that other versions and replicas read, and the names of probes' leases.
    #[test]
    fn notes_are_written_as_they_always_were() {
        let tag = |text: &str| Tag::parse(text).unwrap();
        let (key, other) = (tag("keykeyke"), tag("otherott"));
        for (subject, class, text) in [
            (Subject::Key(key), Class::Illness, "ikkeykeyke"),
            (Subject::Project(key), Class::Recovery, "rpkeykeyke"),
            (Subject::Organization(key), Class::Operator, "ogkeykeyke"),
            (Subject::Model(key, other), Class::Illness, "imkeykeykeotherott"),
            (Subject::Tier(key, other), Class::Illness, "itkeykeykeotherott"),
        ] {
            assert_eq!(Place(subject, class).to_string(), text);
            assert_eq!(Place::parse(text), Some(Place(subject, class)));
        }
        assert_eq!(Subject::Project(key).name(), "ipkeykeyke");
        assert_eq!(
            Condition::ALL.map(Condition::name).join(" "),
            "suspected rejected exhausted limited no_access recovering strained disabled drained \
             enabled"
        );
    }

    #[test]
    fn spelling_of_a_condition_parses_back() {
        let (a, b) = (Tag::of("key", b"a"), Tag::of("model", b"gpt"));
        for subject in [
            Subject::Key(a),
            Subject::Project(a),
            Subject::Organization(a),
            Subject::Model(a, b),
            Subject::Tier(a, b),
        ] {
            for condition in Condition::ALL {
                let place = Place(subject, condition.class());
                assert_eq!(Place::parse(&place.to_string()), Some(place));
                assert_eq!(Condition::parse(condition.name()), Some(condition));
            }
        }
        for nonsense in [
            "",
            "i",
            "ik",
            "ikshort",
            "xk12345678",
            "im12345678",
            "iz12345678",
            "ik12345678x",
            // As long as a tag, and no tag.
            "ik\u{fffd}\u{fffd}ab",
        ] {
            assert_eq!(Place::parse(nonsense), None, "{nonsense}");
        }
    }
}
