//! The supervisor's half: it starts daemons, holds what they leave, and does what the plan says.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use super::plan::{Act, Event, How, Plan, Program, Tell};
use super::watchdog::Watchdog;
use super::wire::{self, Message, Word};
use super::{DEVICES_MAX, Kept};
use crate::arena::Arena;

/// By this name `kos` knows a daemon.
const NAME: &str = "fabricd";

/// Start `program --supervised args…` as a daemon, and again when it crashes, until one ends well or nothing more can be
/// done. SIGTERM ends the daemon first; SIGHUP replaces it, by the program whose path is in the file `upgrade`, if that is
/// there.
#[must_use]
pub fn supervise(program: &Path, args: &[OsString], upgrade: &Path) -> ExitCode {
    let args = args.to_vec();
    let command = move |program: &Path| {
        let mut command = Command::new(program);
        command.arg0(NAME).arg("--supervised").args(&args);
        command
    };
    run(program, Box::new(command), upgrade).map_or_else(
        |e| {
            kos_types::log!("fabricd: supervisor: {e}");
            ExitCode::FAILURE
        },
        ExitCode::from,
    )
}

/// How a daemon of a program is started.
pub(super) type Start = Box<dyn Fn(&Path) -> Command>;

pub(super) fn run(program: &Path, command: Start, upgrade: &Path) -> io::Result<u8> {
    // What is on the way out to a swap file cannot wait for a disk that only its own daemon could read.
    if let Err(e) = mlockall(MlockAllFlags::CURRENT) {
        kos_types::log!("fabricd: supervisor: its memory may be swapped: {e}");
    }
    let mut signals = Signals::of_process()?;
    let mut keeper = Keeper {
        command,
        upgrade: upgrade.to_path_buf(),
        program: program.to_path_buf(),
        previous: program.to_path_buf(),
        kept: Kept::default(),
        watchdog: None,
        life: None,
        pid: 0,
    };
    let mut plan = Plan::new(Instant::now());
    let mut events: VecDeque<Event> = keeper.start(Program::Same).into_iter().collect();
    loop {
        while let Some(event) = events.pop_front() {
            let keeps = !keeper.kept.devices.is_empty();
            for act in plan.decide(Instant::now(), keeps, event) {
                match act {
                    Act::Say(line) => kos_types::log!("fabricd (pid {}) {line}", keeper.pid),
                    Act::Start(program) => events.extend(keeper.start(program)),
                    Act::Tell(what) => keeper.tell(what),
                    Act::Exit(code) => return Ok(code),
                }
            }
        }
        keeper.wait(&signals, plan.deadline())?;
        keeper.watchdog.iter_mut().for_each(Watchdog::look);
        events.extend(keeper.events(&mut signals)?);
        events.push_back(Event::Time);
    }
}

/// The signals of this process, as something to wait for.
struct Signals(SignalDelivery<UnixStream, SignalOnly>);

impl Signals {
    fn of_process() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        Ok(Self(SignalDelivery::with_pipe(read, write, SignalOnly, [SIGTERM, SIGINT, SIGHUP])?))
    }
}

/// A daemon's process.
struct Life {
    child: Child,
    /// To wait for its end by.
    handle: OwnedFd,
    /// Absent when it has let go of its end.
    socket: Option<OwnedFd>,
}

struct Keeper {
    command: Start,
    upgrade: PathBuf,
    program: PathBuf,
    previous: PathBuf,
    kept: Kept,
    watchdog: Option<Watchdog>,
    life: Option<Life>,
    /// Of the last daemon.
    pid: u32,
}

impl Keeper {
    /// The event is that it could not be.
    fn start(&mut self, program: Program) -> Option<Event> {
        match program {
            Program::Same => {}
            Program::New => {
                let named = self.named();
                self.previous = std::mem::replace(&mut self.program, named);
            }
            Program::Previous => self.program.clone_from(&self.previous),
        }
        match self.spawn() {
            Ok(life) => {
                self.pid = life.child.id();
                self.life = Some(life);
                None
            }
            Err(e) => {
                kos_types::log!("fabricd: supervisor: start {}: {e}", self.program.display());
                Some(Event::Ended(How::Unstarted))
            }
        }
    }

    /// The program that the upgrade names; it is named once.
    fn named(&self) -> PathBuf {
        let read = fs::read(&self.upgrade).and_then(|name| fs::remove_file(&self.upgrade).map(|()| name));
        match read {
            Ok(name) => Path::new(OsStr::from_bytes(name.trim_ascii_end())).to_path_buf(),
            Err(e) => {
                if e.kind() != io::ErrorKind::NotFound {
                    kos_types::log!("fabricd: supervisor: {}: {e}", self.upgrade.display());
                }
                self.program.clone()
            }
        }
    }

    fn spawn(&self) -> io::Result<Life> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        if let Some(memory) = &self.kept.memory {
            wire::send(ours.as_fd(), Word::Memory, Some(memory.as_fd()))?;
        }
        for device in &self.kept.devices {
            wire::send(ours.as_fd(), Word::Device, Some(device.as_fd()))?;
        }
        wire::send(ours.as_fd(), Word::All, None)?;
        let mut child = (self.command)(&self.program).stdin(Stdio::from(theirs)).spawn()?;
        let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let handle = handle.inspect_err(|_| {
            // Whose end nobody would hear of.
            let _ = child.kill().and_then(|()| child.wait());
        });
        Ok(Life { child, handle: handle?, socket: Some(ours) })
    }

    fn tell(&self, what: Tell) {
        let Some(life) = &self.life else { return };
        let signal = match what {
            Tell::Stop => Signal::TERM,
            Tell::HandOver => Signal::HUP,
            Tell::Kill => Signal::KILL,
        };
        // It may have ended: that is heard of soon.
        let _ = pidfd_send_signal(&life.handle, signal);
    }

    /// Until something happens.
    fn wait(&self, signals: &Signals, deadline: Option<Instant>) -> io::Result<()> {
        let mut descriptors = vec![PollFd::new(signals.0.get_read(), PollFlags::IN)];
        if let Some(life) = &self.life {
            descriptors.push(PollFd::new(&life.handle, PollFlags::IN));
            descriptors.extend(life.socket.as_ref().map(|socket| PollFd::new(socket, PollFlags::IN)));
        }
        let limit = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        wire::wait(
            &mut descriptors,
            limit.into_iter().chain(self.watchdog.as_ref().map(Watchdog::rest)).min(),
        )
    }

    fn events(&mut self, signals: &mut Signals) -> io::Result<Vec<Event>> {
        // In this order: what a daemon said before its end comes before that.
        let ended = self.life.as_mut().map_or(Ok(None), |life| life.child.try_wait())?;
        let mut events = self.hear();
        events.extend(signals.0.pending().map(|signal| match signal {
            SIGHUP => Event::Upgrade,
            _ => Event::Stop,
        }));
        if let Some(status) = ended {
            self.life = None;
            events.push(Event::Ended(how(status)));
        }
        Ok(events)
    }

    /// What the daemon says.
    fn hear(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(socket) = self.life.as_ref().and_then(|life| life.socket.as_ref()) {
            match wire::receive(socket.as_fd()) {
                Ok(message) => events.extend(self.take(message)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.life.iter_mut().for_each(|life| life.socket = None),
            }
        }
        events
    }

    /// A watchdog of the mount that is kept.
    fn watch(&self) -> Option<Watchdog> {
        let (memory, device) = (self.kept.memory.as_ref()?, self.kept.devices.first()?);
        let clones = memory.try_clone().and_then(|memory| Ok((Arena::adopt(memory)?, device.try_clone()?)));
        match clones {
            Ok((arena, device)) => Some(Watchdog::new(arena, Arc::new(device))),
            Err(e) => {
                kos_types::log!("fabricd: supervisor: nobody watches the mount: {e}");
                None
            }
        }
    }

    fn take(&mut self, message: Message) -> Option<Event> {
        match (message.word, message.descriptor) {
            (Some(Word::Memory), Some(memory)) => self.kept.memory = Some(memory),
            (Some(Word::Device), Some(device)) if self.kept.devices.len() < DEVICES_MAX => {
                self.kept.devices.push(device);
                if self.watchdog.is_none() {
                    self.watchdog = self.watch();
                }
            }
            (Some(Word::Serves), _) => return Some(Event::Serves),
            // Of a later version, which goes without.
            _ => kos_types::log!("fabricd (pid {}) left what is not kept", self.pid),
        }
        None
    }
}

fn how(status: ExitStatus) -> How {
    let byte = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
    match (status.code(), status.signal()) {
        (Some(code), _) => How::Code(byte(code)),
        (None, Some(signal)) => How::Signal(byte(signal)),
        (None, None) => How::Unstarted,
    }
}
