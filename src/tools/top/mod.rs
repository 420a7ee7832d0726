//! `layby top`: a running gateway in a terminal, live.
//!
//! It asks the admin listener once a second, as anybody may, and shows what comes: [`status`] is what is read
//! of an answer, [`view`] what is shown of it and where in it the person is, [`screen`] how that looks. A
//! gateway that does not answer any more is said to be gone and asked on. Whatever ends it, the terminal is
//! left as it was found.

mod plain;
mod screen;
mod status;
mod view;

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{SignalKind, signal};

use self::screen::Look;
use self::status::Reading;
use self::view::{Key, View};
use super::out::{complain, say};

/// Between two looks at the gateway.
const LOOK: Duration = Duration::from_secs(1);

/// How soon a key is seen, and a second passes on the screen.
const BLINK: Duration = Duration::from_millis(100);

/// What is heard from elsewhere than the keyboard.
enum News {
    Read(Box<Reading>),
    Lost(String),
    /// A signal to stop.
    Stop,
}

/// Shows the gateway with its admin listener here: live, or `once` as a plain table. The exit status is that
/// of the process.
pub fn run(admin: SocketAddr, once: bool) -> ExitCode {
    if once {
        return print(admin);
    }
    if !io::stdout().is_terminal() {
        eprintln!("the output is no terminal; --once prints a plain table");
        return ExitCode::FAILURE;
    }
    match watch(admin) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot use the terminal: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(admin: SocketAddr) -> ExitCode {
    let reading = match Reading::take(admin) {
        Ok(reading) => reading,
        Err(error) => {
            complain(format_args!(
                "cannot read the status at {admin}: {error}; --admin says where the gateway has it"
            ));
            return ExitCode::FAILURE;
        }
    };
    say(&plain::page(admin, &reading.status))
}

fn watch(admin: SocketAddr) -> io::Result<()> {
    let (news, heard) = mpsc::channel();
    // Both end with the process.
    thread::Builder::new().spawn({
        let news = news.clone();
        move || listen(&news)
    })?;
    let (again, asked) = mpsc::channel();
    thread::Builder::new().spawn(move || look(admin, &news, &asked))?;
    // With a hook that gives the terminal back in a panic.
    let mut terminal = ratatui::try_init()?;
    let ended = show(&mut terminal, View::new(admin), &heard, &again);
    ratatui::try_restore()?;
    ended
}

/// Until the person or a signal ends it.
fn show(
    terminal: &mut ratatui::DefaultTerminal,
    mut view: View,
    heard: &Receiver<News>,
    again: &Sender<()>,
) -> io::Result<()> {
    let look = Look::from_env();
    loop {
        let now = Instant::now();
        terminal.draw(|frame| screen::draw(frame, &mut view, look, now))?;
        if event::poll(BLINK)? {
            // A new size needs nothing but the next frame.
            if let Event::Key(pressed) = event::read()?
                && let Some(key) = key(pressed)
            {
                match key {
                    Key::Quit => return Ok(()),
                    // There may be nobody to ask any more.
                    Key::Refresh => _ = again.send(()),
                    key => view.press(key),
                }
            }
        }
        for news in heard.try_iter() {
            match news {
                News::Read(reading) => view.reads(*reading),
                News::Lost(why) => view.loses(why),
                News::Stop => return Ok(()),
            }
        }
    }
}

fn key(pressed: KeyEvent) -> Option<Key> {
    if pressed.kind == KeyEventKind::Release {
        return None;
    }
    let control = pressed.modifiers.contains(KeyModifiers::CONTROL);
    Some(match pressed.code {
        KeyCode::Char('c') if control => Key::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Char('r') => Key::Refresh,
        KeyCode::Char('s') => Key::Sort,
        KeyCode::Char(' ' | 'p') => Key::Pause,
        KeyCode::Tab | KeyCode::Right | KeyCode::Left | KeyCode::BackTab => Key::Other,
        KeyCode::Up | KeyCode::Char('k') => Key::Up(1),
        KeyCode::Down | KeyCode::Char('j') => Key::Down(1),
        KeyCode::PageUp => Key::Up(10),
        KeyCode::PageDown => Key::Down(10),
        KeyCode::Home => Key::Up(usize::MAX),
        KeyCode::End => Key::Down(usize::MAX),
        _ => return None,
    })
}

/// Asks the gateway, again and again, and at once when it is `asked` to.
fn look(admin: SocketAddr, news: &Sender<News>, asked: &Receiver<()>) {
    loop {
        let found = match Reading::take(admin) {
            Ok(reading) => News::Read(Box::new(reading)),
            Err(error) => News::Lost(error.to_string()),
        };
        let ended = news.send(found).is_err();
        if ended || asked.recv_timeout(LOOK) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

/// Tells of signals. Without it they would end the process, and leave the terminal as it is.
fn listen(news: &Sender<News>) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    else {
        return;
    };
    runtime.block_on(async {
        let (Ok(mut terminate), Ok(mut hangup), Ok(mut interrupt)) = (
            signal(SignalKind::terminate()),
            signal(SignalKind::hangup()),
            signal(SignalKind::interrupt()),
        ) else {
            return;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    // Who does not listen has ended already.
    let _ = news.send(News::Stop);
}
