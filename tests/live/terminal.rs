//! A command that `rleaks --at-exit` runs has the terminal as it would have it without rleaks.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// A command on a terminal of its own, made by script(1).
struct Terminal {
    child: Child,
    said: Receiver<Vec<u8>>,
    text: String,
}

impl Terminal {
    /// The shell that script(1) starts is replaced by `command`: a shell that waits is in the
    /// foreground too, and some (dash) end by the interrupt that their command has answered.
    fn start(command: &str) -> Self {
        let command = format!("exec {command}");
        let mut child = Command::new("script")
            .args([
                "--quiet",
                "--return",
                "--flush",
                "--command",
                &command,
                "/dev/null",
            ])
            .env("TERM", "dumb")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        let (saying, said) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = std::io::Read::read(&mut output, &mut buffer) {
                let _ = saying.send(buffer[..count].to_vec());
            }
        });
        Self {
            child,
            said,
            text: String::new(),
        }
    }

    /// Waits until `wanted` was printed, and forgets what came before.
    fn expect(&mut self, wanted: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(at) = self.text.find(wanted) {
                self.text.drain(..at + wanted.len());
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.said.recv_timeout(left) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("{wanted:?} does not come after {:?}", self.text),
            }
        }
    }

    fn press(&mut self, keys: &str) {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(keys.as_bytes()).unwrap();
        input.flush().unwrap();
    }

    /// What was printed until the end, and the exit status.
    fn finish(mut self) -> (String, Option<i32>) {
        let status = self.child.wait().unwrap().code();
        for bytes in self.said.iter() {
            self.text.push_str(&String::from_utf8_lossy(&bytes));
        }
        (std::mem::take(&mut self.text), status)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command line of rleaks, for a shell.
fn rleaks(options: &str, command: &str) -> String {
    let rleaks = env!("CARGO_BIN_EXE_rleaks");
    format!("{rleaks} --at-exit --quiet {options} -- {command}")
}

#[test]
fn interrupt_key_reaches_the_command_once_and_its_report_comes() {
    for options in ["--leak-status=7", "--leak-status=7 --on-signal"] {
        let script = "import os, signal, sys, time; seen = []; \
            signal.signal(signal.SIGINT, lambda *_: (seen.append(1), os.write(1, b'int %d\\n' % len(seen)))); \
            os.write(1, b'ready\\n'); \
            [time.sleep(0.02) for _ in iter(lambda: len(seen), 2)]; sys.exit(7)";
        let command = format!("/usr/bin/python3 -c {script:?}");
        let mut terminal = Terminal::start(&rleaks(options, &command));
        terminal.expect("ready");
        for number in 1..=2 {
            terminal.press("\x03");
            terminal.expect(&format!("int {number}"));
        }
        let (text, status) = terminal.finish();
        assert!(text.contains("total leaked bytes."), "{text}");
        assert!(!text.contains("int"), "{text}");
        assert_eq!(status, Some(7), "{options}: {text}");
    }
}

#[test]
fn command_that_the_interrupt_key_ends_is_reported_on_signal() {
    let mut terminal = Terminal::start(&rleaks("--leak-status=130 --on-signal", "cat"));
    terminal.press("echoed\n");
    terminal.expect("echoed\r\nechoed\r\n");
    terminal.press("\x03");
    let (text, status) = terminal.finish();
    assert!(text.contains("total leaked bytes."), "{text}");
    assert_eq!(status, Some(130), "{text}");
}

#[test]
fn quit_key_does_not_end_rleaks() {
    let mut terminal = Terminal::start(&rleaks("", "bash -c 'ulimit -c 0; echo ready; exec cat'"));
    terminal.expect("ready");
    terminal.press("echoed\n");
    terminal.expect("echoed\r\nechoed\r\n");
    terminal.press("\x1c");
    let (text, status) = terminal.finish();
    assert!(
        text.contains("was ended by SIGQUIT, which only --on-signal sees"),
        "{text}"
    );
    assert!(text.contains("ended with status 131"), "{text}");
    assert_eq!(status, Some(2), "{text}");
}

#[test]
fn job_control_stops_and_continues_the_command() {
    for options in ["--leak-status=0", "--leak-status=0 --on-signal"] {
        let mut terminal = Terminal::start("bash --norc --noprofile -i");
        let script = "import os, signal, sys; go_on = lambda *_: os.write(1, b'go' + b'es on\\n'); \
            signal.signal(signal.SIGCONT, go_on); os.write(1, b'rea' + b'dy\\n'); \
            print('got', sys.stdin.readline())";
        let command = format!("/usr/bin/python3 -c {script:?}");
        terminal.press(&format!("{}\n", rleaks(options, &command)));
        terminal.expect("ready\r\n");
        for (command, times) in [("fg", 1), ("bg; sleep 1; fg", 2)] {
            terminal.press("\x1a");
            terminal.expect("Stopped");
            terminal.press(&format!("echo sh\"\"ell; {command}\n"));
            terminal.expect("shell\r\n");
            for _ in 0..times {
                terminal.expect("goes on");
            }
        }
        terminal.press("something\n");
        terminal.expect("got something");
        terminal.expect("total leaked bytes.");
        terminal.press("echo status $?\n");
        terminal.expect("status 0");
        terminal.press("exit\n");
        terminal.finish();
    }
}

#[test]
fn command_is_told_that_its_terminal_is_gone() {
    for options in ["", "--on-signal"] {
        let folder = tempfile::tempdir().unwrap();
        let trace = folder.path().join("trace");
        let script = format!(
            "trap 'echo gone > {}; exit' HUP; echo ready; while :; do sleep 0.02; done",
            trace.display()
        );
        // Here rleaks is the first of its session.
        let command = rleaks(options, &format!("bash -c {script:?}"));
        let mut terminal = Terminal::start(&command);
        terminal.expect("ready");
        drop(terminal);
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::fs::read_to_string(&trace).unwrap_or_default() != "gone\n" {
            assert!(Instant::now() < deadline, "it was not told: {options}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn command_is_in_the_foreground_of_its_terminal() {
    let script = "import os, sys; fds = (0, 1, 2); print([os.isatty(fd) for fd in fds], \
        os.tcgetpgrp(0) == os.getpgrp(), os.ttyname(0) == os.ctermid() or os.ttyname(0))";
    let command = format!("/usr/bin/python3 -c {script:?}");
    let mut terminal = Terminal::start(&rleaks("", &command));
    terminal.expect("[True, True, True] True /dev/pts/");
    terminal.expect("total leaked bytes.");
}

#[test]
fn shell_with_job_control_of_its_own_works_in_it() {
    let shell = rleaks("--leak-status=5", "bash --norc --noprofile -i");
    let mut terminal = Terminal::start(&shell);
    terminal.press("sh -c 'echo rea\"\"dy; exec cat'\n");
    terminal.expect("ready\r\n");
    terminal.press("\x1a");
    terminal.expect("Stopped");
    terminal.press("kill -9 %1; sleep 0.2\n");
    terminal.expect("Killed");
    terminal.press("exit 5\n");
    terminal.expect("total leaked bytes.");
    let (text, status) = terminal.finish();
    assert_eq!(status, Some(5), "{text}");
}
