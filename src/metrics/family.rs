//! Declares families of metrics: the name, unit, labels and help of a family stand in one place.
//!
//! [`families!`] makes a struct of families. [`Page`] registers each family and shows every known
//! combination of its labels at 0, so that a rate is right from the first event on.

use std::sync::atomic::AtomicU64;

pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::metrics::label::Labels;

pub type Counters<L> = Family<L, Counter>;
/// Counters of fractional amounts.
pub type Amounts<L> = Family<L, Counter<f64, AtomicU64>>;
pub type Gauges<L> = Family<L, Gauge>;
pub type Times<L> = Family<L, Histogram, Buckets>;

/// Declares the families of one topic: `field: Type = kind("name", "help", ..)`, where `kind` is a
/// function of [`Page`].
macro_rules! families {
    (
        $(#[$doc:meta])*
        pub struct $topic:ident {
            $($family:ident: $type:ty = $kind:ident($($argument:expr),+ $(,)?),)+
        }
    ) => {
        $(#[$doc])*
        pub struct $topic { $($family: $type),+ }

        impl $topic {
            pub fn new(page: &mut $crate::metrics::family::Page) -> Self {
                Self { $($family: page.$kind($($argument),+)),+ }
            }
        }
    };
}
pub(super) use families;

/// The upper bounds of a histogram's buckets, in seconds.
#[derive(Clone, Copy)]
pub struct Buckets(&'static [f64]);

/// A turn takes from a tenth of a second to half an hour.
pub const OF_TURNS: Buckets =
    Buckets(&[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0]);

/// The gateway and the store take milliseconds.
pub const OF_STEPS: Buckets = Buckets(&[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// The page of metrics while its families are being registered.
pub struct Page(Registry);

impl Page {
    pub fn new(prefix: &str) -> Self {
        Self(Registry::with_prefix(prefix))
    }

    pub fn into_registry(self) -> Registry {
        self.0
    }

    pub fn counter(&mut self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.0.register(name, help, counter.clone());
        counter
    }

    pub fn counters<L: Labels>(&mut self, name: &str, help: &str) -> Counters<L> {
        let family = show_all_labels(Family::default());
        self.0.register(name, help, family.clone());
        family
    }

    pub fn amounts<L: Labels>(&mut self, name: &str, help: &str) -> Amounts<L> {
        let family = show_all_labels(Family::default());
        self.0.register(name, help, family.clone());
        family
    }

    pub fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::default();
        self.0.register(name, help, gauge.clone());
        gauge
    }

    pub fn gauges<L: Labels>(&mut self, name: &str, help: &str) -> Gauges<L> {
        let family = show_all_labels(Family::default());
        self.0.register(name, help, family.clone());
        family
    }

    /// A histogram in seconds. Its unit ends its name.
    pub fn time(&mut self, name: &str, help: &str, buckets: Buckets) -> Histogram {
        let histogram = buckets.new_metric();
        self.0.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        histogram
    }

    /// Histograms in seconds. Their unit ends their name.
    pub fn times<L: Labels>(&mut self, name: &str, help: &str, buckets: Buckets) -> Times<L> {
        let family = show_all_labels(Family::new_with_constructor(buckets));
        self.0.register_with_unit(name, help, Unit::Seconds, family.clone());
        family
    }

    /// A constant 1 that carries a label.
    pub fn info(&mut self, name: &str, help: &str, label: (&'static str, &'static str)) {
        self.0.register(name, help, Info::new([label]));
    }
}

/// Makes every known combination of labels, so that the page shows it at 0.
fn show_all_labels<L: Labels, M, C: MetricConstructor<M>>(
    family: Family<L, M, C>,
) -> Family<L, M, C> {
    for labels in L::all_values() {
        drop(family.get_or_create(&labels));
    }
    family
}
