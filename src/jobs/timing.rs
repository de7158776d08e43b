//! When something is due: a cron expression on a clock on the wall somewhere.

use std::str::FromStr;

use chrono::{DateTime, SubsecRound, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds};

/// A cron expression in a time zone.
pub struct Timing {
    cron: Cron,
    zone: Tz,
}

impl Timing {
    /// Reads an expression, `seconds` of which are required or may be left out; the zone is UTC unless told.
    ///
    /// # Errors
    /// Why it is none, or that it never comes, as a 30 February.
    pub fn parse(cron: &str, zone: Option<&str>, seconds: Seconds) -> Result<Self, String> {
        let zone = zone.unwrap_or("UTC");
        let zone = Tz::from_str(zone).map_err(|_| format!("`{zone}` is no time zone such as Europe/Berlin"))?;
        let parser = CronParser::builder().seconds(seconds).dom_and_dow(true).build();
        let timing = Self { cron: parser.parse(cron).map_err(|error| format!("`{cron}`: {error}"))?, zone };
        if timing.next(Utc::now()).is_none() {
            return Err(format!("`{cron}` never comes"));
        }
        Ok(timing)
    }

    /// The last tick that is not after `now`.
    #[must_use]
    pub fn latest(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let shown = self.cron.find_previous_occurrence(&self.wall_clock(now), true).ok()?;
        let earlier = |shown: &DateTime<Utc>| self.cron.find_previous_occurrence(shown, false).ok();
        let mut moments = std::iter::successors(Some(shown), earlier).map_while(|shown| self.moment(shown));
        // Times that the clock has just skipped are still to come.
        moments.find(|moment| *moment <= now)
    }

    /// The first tick after `now`.
    #[must_use]
    pub fn next(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let (shown, hour) = (self.wall_clock(now), TimeDelta::hours(1));
        // Times that the clock has just skipped are still to come.
        let has_skipped = shown - self.wall_clock(now - hour) > hour;
        let first = self.cron.find_next_occurrence(&(if has_skipped { shown - hour } else { shown }), false).ok()?;
        let later = |shown: &DateTime<Utc>| self.cron.find_next_occurrence(shown, false).ok();
        let mut moments = std::iter::successors(Some(first), later).map_while(|shown| self.moment(shown));
        // Times that the clock shows again are over.
        moments.find(|moment| *moment > now)
    }

    /// What a clock on the wall shows, as if it were UTC: ticks are found on it, where no hour is missing or doubled.
    /// It shows whole seconds, since a tick is told from others by its time, and would have the fraction of `now`.
    fn wall_clock(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        now.with_timezone(&self.zone).naive_local().and_utc().trunc_subsecs(0)
    }

    /// When the clock on the wall shows that: for the first time where it does twice, an hour later where it never does.
    fn moment(&self, shown: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let local = |shown: DateTime<Utc>| self.zone.from_local_datetime(&shown.naive_utc()).earliest();
        local(shown).or_else(|| local(shown + TimeDelta::hours(1))).map(|moment| moment.with_timezone(&Utc))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(cron: &str, now: &str) -> String {
        let timing = Timing::parse(cron, Some("Europe/Berlin"), Seconds::Required).expect("a timing");
        timing.next(now.parse().expect("a time")).expect("a tick").to_rfc3339()
    }

    #[test]
    fn a_time_that_the_clock_skips_comes_next_an_hour_later() {
        // The clock goes from 02:00 (01:00 UTC) to 03:00.
        for now in ["2026-03-29T00:59:59Z", "2026-03-29T01:00:00Z", "2026-03-29T01:29:59Z"] {
            assert_eq!(next("0 30 2 * * *", now), "2026-03-29T01:30:00+00:00", "{now}");
        }
        assert_eq!(next("0 30 2 * * *", "2026-03-29T01:30:00Z"), "2026-03-30T00:30:00+00:00");
    }

    #[test]
    fn a_time_that_the_clock_shows_twice_comes_next_once() {
        // The clock goes from 03:00 (01:00 UTC) to 02:00.
        assert_eq!(next("0 30 2 * * *", "2026-10-25T00:29:59Z"), "2026-10-25T00:30:00+00:00");
        for now in ["2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:29:59Z", "2026-10-25T01:45:00Z"] {
            assert_eq!(next("0 30 2 * * *", now), "2026-10-26T01:30:00+00:00", "{now}");
        }
    }
}
