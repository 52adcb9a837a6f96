//! What the supervisor does when a daemon ended or a signal came. It decides, and does nothing: time and events are passed in.

use std::fmt;
use std::time::{Duration, Instant};

/// A daemon's exit code: it left everything to the next one.
pub const HANDED_OVER: u8 = 75;

/// Starts in a row that came to nothing.
const FAILED_MAX: u32 = 5;
/// The wait behind the first of them; it doubles.
const PAUSE: Duration = Duration::from_millis(100);
/// No daemon serves, and programs wait.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// A new program may take so long to serve, and the previous one has time left.
const TRIAL_MAX: Duration = Duration::from_secs(40);
/// A daemon flushes before it hands over.
const HAND_OVER_MAX: Duration = Duration::from_secs(30);

/// How a daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Code(u8),
    Signal(u8),
    /// Its program could not be executed.
    Unstarted,
}

impl How {
    /// The exit code of whoever ends with it, as a shell has it.
    fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
            Self::Unstarted => 1,
        }
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "ended with code {code}"),
            Self::Signal(signal) => write!(f, "ended by signal {signal}"),
            Self::Unstarted => f.write_str("could not be started"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The daemon says so.
    Serves,
    Ended(How),
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Upgrade,
    /// What [`Plan::deadline`] said.
    Time,
}

/// Which program a daemon is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Same,
    /// The one that the upgrade names.
    New,
    /// The one before that.
    Previous,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tell {
    Stop,
    HandOver,
    Kill,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// A line of the log, about the daemon.
    Say(String),
    Start(Program),
    Tell(Tell),
    /// Let everything go, and end with this code.
    Exit(u8),
}

fn say(line: impl Into<String>) -> Act {
    Act::Say(line.into())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A daemon starts, and is ended when it does not serve by then.
    Starting {
        until: Option<Instant>,
    },
    /// It was ended.
    Killed,
    Serving,
    /// It was asked to, and is ended when it has not by then.
    HandingOver {
        until: Option<Instant>,
    },
    /// After a start that came to nothing.
    Pausing {
        until: Instant,
    },
}

#[derive(Debug)]
pub(super) struct Plan {
    phase: Phase,
    /// Since when programs wait for a daemon that serves.
    silent_since: Instant,
    failed: u32,
    /// The program is new, and has not served yet.
    on_trial: bool,
    /// The end was asked for. Nothing is lost by it: where a mount is kept, a daemon comes to serve first, and ends it.
    /// The limits of starts hold for that too.
    stop: bool,
    /// An upgrade was asked for while no daemon could hand over.
    upgrade: bool,
}

impl Plan {
    /// As the first daemon is started. It may take as long as it likes: nothing waits for it but whoever started it.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Starting { until: None },
            silent_since: now,
            failed: 0,
            on_trial: false,
            stop: false,
            upgrade: false,
        }
    }

    /// When to come back with [`Event::Time`].
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Starting { until } | Phase::HandingOver { until } => until,
            Phase::Pausing { until } => Some(until),
            Phase::Killed | Phase::Serving => None,
        }
    }

    /// What to do, in this order. `keeps`: connections of a mount are kept.
    pub(super) fn decide(&mut self, now: Instant, keeps: bool, event: Event) -> Vec<Act> {
        match event {
            Event::Serves => self.serves(now, keeps),
            Event::Ended(how) => self.ended(now, keeps, how),
            Event::Stop => self.stop(keeps),
            Event::Upgrade => self.upgrade(now, keeps),
            Event::Time => self.time(now),
        }
    }

    fn serves(&mut self, now: Instant, keeps: bool) -> Vec<Act> {
        let mut acts = Vec::new();
        if !matches!(self.phase, Phase::Starting { .. }) {
            return acts;
        }
        (self.phase, self.failed) = (Phase::Serving, 0);
        if std::mem::take(&mut self.on_trial) {
            acts.push(say("is of the new program, and serves"));
        }
        if self.stop {
            acts.push(Act::Tell(Tell::Stop));
        } else if std::mem::take(&mut self.upgrade) {
            acts.extend(self.upgrade(now, keeps));
        }
        acts
    }

    fn ended(&mut self, now: Instant, keeps: bool, how: How) -> Vec<Act> {
        let served = matches!(self.phase, Phase::Serving | Phase::HandingOver { .. });
        if how == How::Code(0) {
            return vec![Act::Exit(0)];
        }
        if served {
            self.silent_since = now;
        }
        match (self.phase, how) {
            (Phase::HandingOver { .. }, _) if keeps => {
                // Whoever wants the end is served best by what has served.
                self.on_trial = !self.stop;
                let program = if self.on_trial { Program::New } else { Program::Same };
                self.start(now, true, program, format!("{how}; the next one is started"))
            }
            (_, How::Code(HANDED_OVER)) if served => {
                self.start(now, keeps, Program::Same, format!("{how}; the next one is started"))
            }
            _ if !keeps => vec![say(format!("{how}; no mount is kept")), Act::Exit(how.code())],
            // It was on its way out, and went all the way.
            (Phase::Serving, How::Code(code)) if self.stop => vec![Act::Exit(code)],
            _ if served => self.start(now, true, Program::Same, format!("{how}; started again")),
            _ => self.failed_start(now, how),
        }
    }

    fn failed_start(&mut self, now: Instant, how: How) -> Vec<Act> {
        if std::mem::take(&mut self.on_trial) {
            // It has its whole time, whatever the new one took.
            (self.silent_since, self.failed) = (now, 0);
            let line = format!("{how} before it served: back to the previous program");
            return self.start(now, true, Program::Previous, line);
        }
        self.failed += 1;
        let silent = now.saturating_duration_since(self.silent_since);
        if self.failed >= FAILED_MAX || silent >= SILENCE_MAX {
            let (failed, silent) = (self.failed, silent.as_secs());
            let line = format!(
                "{how} before it served; given up after {failed} starts in {silent} s: the mount ends, and what programs \
                 had not synced is lost"
            );
            return vec![say(line), Act::Exit(1)];
        }
        let pause = PAUSE * 2_u32.pow(self.failed - 1);
        self.phase = Phase::Pausing { until: now + pause };
        vec![say(format!("{how} before it served; started again in {} ms", pause.as_millis()))]
    }

    fn start(&mut self, now: Instant, keeps: bool, program: Program, line: String) -> Vec<Act> {
        self.begin(now, keeps);
        vec![say(line), Act::Start(program)]
    }

    fn begin(&mut self, now: Instant, keeps: bool) {
        let last = self.silent_since + SILENCE_MAX;
        let until = if self.on_trial { now + TRIAL_MAX } else { last };
        self.phase = Phase::Starting { until: keeps.then_some(until) };
    }

    fn stop(&mut self, keeps: bool) -> Vec<Act> {
        self.stop = true;
        if let Phase::HandingOver { until } = &mut self.phase {
            // It may have heard this first, and then takes the time that an end takes.
            *until = None;
        }
        match self.phase {
            Phase::Serving | Phase::HandingOver { .. } => vec![Act::Tell(Tell::Stop)],
            // As if there were no supervisor.
            Phase::Starting { .. } if !keeps => vec![Act::Tell(Tell::Stop)],
            Phase::Starting { .. } | Phase::Pausing { .. } | Phase::Killed => {
                vec![say("is to end: as soon as it serves")]
            }
        }
    }

    fn upgrade(&mut self, now: Instant, keeps: bool) -> Vec<Act> {
        match self.phase {
            _ if self.stop => Vec::new(),
            Phase::HandingOver { .. } => Vec::new(),
            Phase::Serving if keeps => {
                self.phase = Phase::HandingOver { until: Some(now + HAND_OVER_MAX) };
                vec![Act::Tell(Tell::HandOver)]
            }
            Phase::Serving => vec![say("has left no mount to keep: it is not replaced")],
            Phase::Starting { .. } | Phase::Killed | Phase::Pausing { .. } => {
                self.upgrade = true;
                vec![say("is to be replaced: as soon as it serves")]
            }
        }
    }

    fn time(&mut self, now: Instant) -> Vec<Act> {
        if self.deadline().is_none_or(|until| now < until) {
            return Vec::new();
        }
        let line = match self.phase {
            Phase::Pausing { .. } => {
                self.begin(now, true);
                return vec![Act::Start(Program::Same)];
            }
            Phase::HandingOver { .. } => {
                self.phase = Phase::HandingOver { until: None };
                format!("has not handed over within {} s: it is ended", HAND_OVER_MAX.as_secs())
            }
            Phase::Starting { .. } | Phase::Killed | Phase::Serving => {
                self.phase = Phase::Killed;
                "does not come to serve: it is ended".to_owned()
            }
        };
        vec![say(line), Act::Tell(Tell::Kill)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CRASH: Event = Event::Ended(How::Signal(9));

    /// A plan, its time, and whether a mount is kept.
    struct Run {
        plan: Plan,
        now: Instant,
        keeps: bool,
    }

    impl Run {
        fn starting() -> Self {
            let now = Instant::now();
            Self { plan: Plan::new(now), now, keeps: false }
        }

        fn serving() -> Self {
            let mut run = Self::starting();
            run.keeps = true;
            assert_eq!(run.on(Event::Serves), []);
            run
        }

        /// What is done, without what is said.
        fn on(&mut self, event: Event) -> Vec<Act> {
            let acts = self.plan.decide(self.now, self.keeps, event);
            acts.into_iter().filter(|act| !matches!(act, Act::Say(_))).collect()
        }

        /// When the next deadline comes.
        fn later(&mut self) -> (Duration, Vec<Act>) {
            let until = self.plan.deadline().expect("a deadline");
            let waited = until - self.now;
            self.now = until;
            (waited, self.on(Event::Time))
        }
    }

    #[test]
    fn a_clean_end_ends_the_supervisor() {
        for mut run in [Run::starting(), Run::serving()] {
            assert_eq!(run.on(Event::Ended(How::Code(0))), [Act::Exit(0)]);
        }
    }

    #[test]
    fn without_a_mount_it_ends_as_the_daemon_did() {
        for (how, code) in [(How::Signal(9), 137), (How::Code(3), 3), (How::Unstarted, 1)] {
            assert_eq!(Run::starting().on(Event::Ended(how)), [Act::Exit(code)]);
            let mut run = Run::serving();
            run.keeps = false;
            assert_eq!(run.on(Event::Ended(how)), [Act::Exit(code)]);
        }
    }

    #[test]
    fn a_first_start_takes_as_long_as_it_likes() {
        assert_eq!(Run::starting().plan.deadline(), None);
    }

    #[test]
    fn a_crash_is_answered_by_a_start_again_and_again() {
        let mut run = Run::serving();
        for how in
            [How::Signal(9), How::Signal(11), How::Code(101), How::Code(1), How::Code(HANDED_OVER)].repeat(3)
        {
            assert_eq!(run.on(Event::Ended(how)), [Act::Start(Program::Same)], "{how}");
            assert_eq!(run.on(Event::Serves), []);
        }
    }

    #[test]
    fn starts_that_fail_are_further_and_further_apart_and_then_given_up() {
        let mut run = Run::serving();
        assert_eq!(run.on(CRASH), [Act::Start(Program::Same)]);
        for millis in [100, 200, 400, 800] {
            assert_eq!(run.on(Event::Ended(How::Code(HANDED_OVER))), []);
            assert_eq!(run.later(), (Duration::from_millis(millis), vec![Act::Start(Program::Same)]));
        }
        assert_eq!(run.on(CRASH), [Act::Exit(1)]);
    }

    #[test]
    fn one_that_serves_lets_the_count_begin_anew() {
        let mut run = Run::serving();
        for _ in 0..3 {
            run.on(CRASH);
            for _ in 0..FAILED_MAX - 1 {
                assert_eq!(run.on(CRASH), []);
                run.later();
            }
            assert_eq!(run.on(Event::Serves), []);
        }
    }

    #[test]
    fn a_start_that_hangs_is_ended_and_given_up() {
        let mut run = Run::serving();
        run.on(CRASH);
        run.on(CRASH);
        let (pause, _) = run.later();
        assert_eq!(run.later(), (SILENCE_MAX - pause, vec![Act::Tell(Tell::Kill)]));
        assert_eq!(run.on(Event::Serves), [], "too late");
        assert_eq!((run.plan.deadline(), run.on(CRASH)), (None, vec![Act::Exit(1)]));
    }

    #[test]
    fn a_stop_is_passed_on_to_who_serves_and_the_end_is_its() {
        for (end, act) in [(How::Code(0), Act::Exit(0)), (How::Code(1), Act::Exit(1))] {
            let mut run = Run::serving();
            assert_eq!(run.on(Event::Stop), [Act::Tell(Tell::Stop)]);
            assert_eq!(run.on(Event::Upgrade), []);
            assert_eq!(run.on(Event::Ended(end)), [act]);
        }
        let mut first = Run::starting();
        assert_eq!(first.on(Event::Stop), [Act::Tell(Tell::Stop)]);
        assert_eq!(first.on(Event::Ended(How::Signal(15))), [Act::Exit(143)]);
    }

    #[test]
    fn a_stop_between_two_daemons_waits_for_the_next_and_no_longer_than_its_start_may_take() {
        let mut run = Run::serving();
        run.on(CRASH);
        assert_eq!(run.on(Event::Stop), []);
        assert_eq!(run.on(Event::Serves), [Act::Tell(Tell::Stop)]);
        assert_eq!(run.on(CRASH), [Act::Start(Program::Same)], "what it had not flushed is kept");
        assert_eq!(run.later(), (SILENCE_MAX, vec![Act::Tell(Tell::Kill)]));
        assert_eq!(run.on(CRASH), [Act::Exit(1)]);
    }

    #[test]
    fn an_upgrade_hands_over_to_the_new_program() {
        let mut run = Run::serving();
        for end in [How::Code(HANDED_OVER), How::Signal(11)] {
            assert_eq!(run.on(Event::Upgrade), [Act::Tell(Tell::HandOver)]);
            assert_eq!(run.on(Event::Upgrade), [], "once");
            assert_eq!(run.on(Event::Ended(end)), [Act::Start(Program::New)]);
            assert_eq!(run.on(Event::Serves), []);
        }
        assert_eq!(run.on(CRASH), [Act::Start(Program::Same)]);
    }

    #[test]
    fn who_does_not_hand_over_is_ended() {
        let mut run = Run::serving();
        run.on(Event::Upgrade);
        assert_eq!(run.later(), (HAND_OVER_MAX, vec![Act::Tell(Tell::Kill)]));
        assert_eq!(run.plan.deadline(), None);
        assert_eq!(run.on(CRASH), [Act::Start(Program::New)]);
    }

    #[test]
    fn a_new_program_that_does_not_serve_gives_way_to_the_previous_one() {
        for hangs in [false, true] {
            let mut run = Run::serving();
            run.on(Event::Upgrade);
            run.on(Event::Ended(How::Code(HANDED_OVER)));
            if hangs {
                assert_eq!(run.later(), (TRIAL_MAX, vec![Act::Tell(Tell::Kill)]));
            }
            assert_eq!(run.on(CRASH), [Act::Start(Program::Previous)]);
            for _ in 0..FAILED_MAX - 1 {
                assert_eq!(run.on(Event::Ended(How::Unstarted)), []);
                assert_eq!(run.later().1, [Act::Start(Program::Same)]);
            }
            assert_eq!(run.on(Event::Serves), []);
        }
    }

    #[test]
    fn an_upgrade_needs_a_mount_and_waits_for_a_daemon_that_serves() {
        let mut run = Run::serving();
        run.keeps = false;
        assert_eq!(run.on(Event::Upgrade), []);
        assert_eq!(run.plan.deadline(), None);
        run.keeps = true;
        run.on(CRASH);
        assert_eq!(run.on(Event::Upgrade), []);
        assert_eq!(run.on(Event::Serves), [Act::Tell(Tell::HandOver)]);
    }

    #[test]
    fn a_stop_while_one_hands_over_ends_the_next() {
        let mut run = Run::serving();
        run.on(Event::Upgrade);
        assert_eq!(run.on(Event::Stop), [Act::Tell(Tell::Stop)]);
        assert_eq!(run.plan.deadline(), None);
        assert_eq!(run.on(Event::Ended(How::Code(HANDED_OVER))), [Act::Start(Program::Same)]);
        assert_eq!(run.on(Event::Serves), [Act::Tell(Tell::Stop)]);
        assert_eq!(run.on(Event::Ended(How::Code(0))), [Act::Exit(0)]);
    }
}
