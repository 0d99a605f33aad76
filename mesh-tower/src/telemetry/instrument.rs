//! Counters, gauges and histograms: atomics that anybody may read, and that are handed on to the
//! `metrics` facade where a program asks for it.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Names and values of a metric's labels, in the order of their output.
pub(crate) type Labels = Vec<(&'static str, String)>;

/// Makes instruments. With the feature `metrics`, each has a twin at a recorder.
#[derive(Clone, Default)]
pub(crate) struct Maker {
    #[cfg(feature = "metrics")]
    recorder: Option<std::sync::Arc<dyn metrics::Recorder + Send + Sync>>,
}

/// A number that only grows.
pub(crate) struct Counter {
    value: AtomicU64,
    #[cfg(feature = "metrics")]
    twin: metrics::Counter,
}

/// A number that is set.
pub(crate) struct Gauge {
    value: AtomicU64,
    #[cfg(feature = "metrics")]
    twin: metrics::Gauge,
}

/// What a histogram counts in. The number inside is the smallest step that it keeps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unit {
    /// Kept in bytes, shown in bytes.
    Bytes,
    /// Kept in microseconds, shown in milliseconds.
    Milliseconds,
    /// Kept in nanoseconds, shown in seconds.
    Seconds,
}

impl Unit {
    /// Decimal places between what is kept and what is shown.
    pub(crate) fn places(self) -> u32 {
        match self {
            Self::Bytes => 0,
            Self::Milliseconds => 3,
            Self::Seconds => 9,
        }
    }
}

/// Counts values by fixed bounds.
pub(crate) struct Histogram {
    unit: Unit,
    /// Upper bounds, ascending, in what `unit` keeps.
    bounds: &'static [u64],
    /// One for each bound, and one for what is beyond.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
    #[cfg(feature = "metrics")]
    twin: metrics::Histogram,
}

impl Maker {
    /// Instruments have a twin at this recorder.
    #[cfg(feature = "metrics")]
    pub(crate) fn with_recorder(
        recorder: std::sync::Arc<dyn metrics::Recorder + Send + Sync>,
    ) -> Self {
        Self { recorder: Some(recorder) }
    }

    #[cfg_attr(
        not(feature = "metrics"),
        expect(clippy::unused_self, unused_variables, reason = "the twin is what needs them")
    )]
    pub(crate) fn counter(&self, name: &'static str, labels: &Labels) -> Counter {
        Counter {
            value: AtomicU64::new(0),
            #[cfg(feature = "metrics")]
            twin: self.register(metrics::Counter::noop, |recorder, metadata| {
                recorder.register_counter(&key(name, labels), metadata)
            }),
        }
    }

    #[cfg_attr(
        not(feature = "metrics"),
        expect(clippy::unused_self, unused_variables, reason = "the twin is what needs them")
    )]
    pub(crate) fn gauge(&self, name: &'static str, labels: &Labels) -> Gauge {
        Gauge {
            value: AtomicU64::new(0),
            #[cfg(feature = "metrics")]
            twin: self.register(metrics::Gauge::noop, |recorder, metadata| {
                recorder.register_gauge(&key(name, labels), metadata)
            }),
        }
    }

    #[cfg_attr(
        not(feature = "metrics"),
        expect(clippy::unused_self, unused_variables, reason = "the twin is what needs them")
    )]
    pub(crate) fn histogram(
        &self,
        name: &'static str,
        labels: &Labels,
        (unit, bounds): (Unit, &'static [u64]),
    ) -> Histogram {
        let places = bounds.len().saturating_add(1);
        Histogram {
            unit,
            bounds,
            counts: (0..places).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
            #[cfg(feature = "metrics")]
            twin: self.register(metrics::Histogram::noop, |recorder, metadata| {
                recorder.register_histogram(&key(name, labels), metadata)
            }),
        }
    }

    #[cfg(feature = "metrics")]
    fn register<T>(
        &self,
        none: impl FnOnce() -> T,
        register: impl FnOnce(&dyn metrics::Recorder, &metrics::Metadata<'static>) -> T,
    ) -> T {
        static METADATA: metrics::Metadata<'static> =
            metrics::Metadata::new("mesh_tower", metrics::Level::INFO, Some("mesh_tower"));
        match &self.recorder {
            Some(recorder) => register(recorder, &METADATA),
            None => none(),
        }
    }
}

#[cfg(feature = "metrics")]
fn key(name: &'static str, labels: &Labels) -> metrics::Key {
    let labels: Vec<metrics::Label> =
        labels.iter().map(|(name, value)| metrics::Label::new(*name, value.clone())).collect();
    metrics::Key::from_parts(name, labels)
}

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.value.fetch_add(count, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        self.twin.increment(count);
    }

    pub(crate) fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

impl Gauge {
    pub(crate) fn set(&self, value: u64) {
        self.value.store(value, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        self.twin.set(float(value));
    }

    pub(crate) fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

impl Histogram {
    /// Counts a value in the unit's smallest step.
    fn count(&self, value: u64) {
        let place = self.bounds.partition_point(|bound| *bound < value);
        if let Some(counter) = self.counts.get(place) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        if value > 0 {
            self.sum.fetch_add(value, Ordering::Relaxed);
        }
    }

    /// Counts a duration; for units of time.
    pub(crate) fn time(&self, took: Duration) {
        let kept = match self.unit {
            Unit::Milliseconds => took.as_micros(),
            Unit::Seconds | Unit::Bytes => took.as_nanos(),
        };
        self.count(u64::try_from(kept).unwrap_or(u64::MAX));
        #[cfg(feature = "metrics")]
        {
            let seconds = took.as_secs_f64();
            self.twin.record(if self.unit == Unit::Seconds { seconds } else { seconds * 1e3 });
        }
    }

    /// Counts a size.
    pub(crate) fn size(&self, bytes: u64) {
        self.count(bytes);
        #[cfg(feature = "metrics")]
        self.twin.record(float(bytes));
    }

    /// How many values there were.
    pub(crate) fn total(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// The sum of all values in the unit's smallest step.
    pub(crate) fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }

    /// Writes the lines of Prometheus' text format.
    pub(crate) fn write(&self, out: &mut String, name: &str, labels: &Labels) {
        let places = self.unit.places();
        let mut below = 0_u64;
        let bounds = self.bounds.iter().map(|bound| decimal(*bound, places));
        for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(&self.counts) {
            below = below.saturating_add(count.load(Ordering::Relaxed));
            write_line(out, &format!("{name}_bucket"), labels, Some(("le", &bound)), &below);
        }
        write_line(out, &format!("{name}_sum"), labels, None, &decimal(self.sum(), places));
        write_line(out, &format!("{name}_count"), labels, None, &below);
    }
}

#[cfg(feature = "metrics")]
#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "the facade takes floats only; 2^53 is exact enough for a size or a time"
)]
fn float(value: u64) -> f64 {
    value as f64
}

/// A number with so many decimal places, without zeros at its end.
fn decimal(value: u64, places: u32) -> String {
    let places = usize::try_from(places).unwrap_or_default();
    // At least one digit stands before the point.
    let digits = format!("{value:0width$}", width = places.saturating_add(1));
    let point = digits.len().saturating_sub(places);
    let (whole, part) = digits.split_at_checked(point).unwrap_or((&digits, ""));
    match part.trim_end_matches('0') {
        "" => whole.to_owned(),
        part => format!("{whole}.{part}"),
    }
}

/// One line of Prometheus' text format; label values are escaped.
pub(crate) fn write_line(
    out: &mut String,
    name: &str,
    labels: &Labels,
    last: Option<(&str, &str)>,
    value: &dyn fmt::Display,
) {
    out.push_str(name);
    let all = labels.iter().map(|(name, value)| (*name, value.as_str())).chain(last);
    let mut before = '{';
    for (name, value) in all {
        out.push(before);
        out.push_str(name);
        out.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
        before = ',';
    }
    if before == ',' {
        out.push('}');
    }
    // Writing to a string cannot fail.
    writeln!(out, " {value}").ok();
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values", self.total())
    }
}

impl fmt::Debug for Maker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maker").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_in_their_unit() {
        for (value, places, want) in [
            (500, 3, "0.5"),
            (1_000, 3, "1"),
            (1_500_000_000, 9, "1.5"),
            (1, 9, "0.000000001"),
            (0, 3, "0"),
            (77, 0, "77"),
        ] {
            assert_eq!(decimal(value, places), want);
        }
    }

    #[test]
    fn histograms_count_up_to_their_bounds() {
        let maker = Maker::default();
        let histogram = maker.histogram("h", &Labels::new(), (Unit::Bytes, &[1, 10]));
        for value in [0, 1, 2, 10, 11] {
            histogram.size(value);
        }
        let mut out = String::new();
        histogram.write(&mut out, "h", &vec![("a", "x\"\n".to_owned())]);
        let want = "h_bucket{a=\"x\\\"\\n\",le=\"1\"} 2\n\
                    h_bucket{a=\"x\\\"\\n\",le=\"10\"} 4\n\
                    h_bucket{a=\"x\\\"\\n\",le=\"+Inf\"} 5\n\
                    h_sum{a=\"x\\\"\\n\"} 24\n\
                    h_count{a=\"x\\\"\\n\"} 5\n";
        assert_eq!(out, want);
    }
}
