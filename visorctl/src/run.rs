//! From words to an answer and an exit code.

use std::io::{IsTerminal, Write, stderr};
use std::path::Path;

use crate::cli::{Cli, Command, Ticket};
use crate::failure::{Exit, Failure};
use crate::make::Made;
use crate::port::Port;
use crate::reply::{self, Answer};
use crate::submit::Words;
use crate::{attest, audit, check, docs, make, receipt, status, submit, vms};

/// Does what `cli` says, with the port that `open` gives, and reports to `out`; for people, failures go
/// to `err`.
pub(crate) fn run<P: Port>(
    cli: &Cli,
    open: impl FnOnce(&Path) -> Result<P, Failure>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Exit {
    let command = cli.command.name();
    let done = answer(cli, open).and_then(|(answer, exit)| {
        let text = if cli.json {
            reply::answer(command, &answer, exit) + "\n"
        } else {
            answer.to_string()
        };
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)?;
        Ok(exit)
    });
    match done {
        Ok(exit) => exit,
        Err(failure) => {
            // Where neither can be written, the exit code must do.
            let _ = if cli.json {
                writeln!(out, "{}", reply::failure(command, &failure))
            } else {
                writeln!(err, "visorctl: {failure}")
            };
            failure.exit()
        }
    }
}

fn answer<P: Port>(
    cli: &Cli,
    open: impl FnOnce(&Path) -> Result<P, Failure>,
) -> Result<(Answer, Exit), Failure> {
    let port = || open(&cli.lock);
    let good = |answer| Ok((answer, Exit::Good));
    match &cli.command {
        Command::Status { require_protected } => {
            let status = status::status(port()?)?;
            let exit = if *require_protected { status.require_protected()? } else { Exit::Good };
            Ok((Answer::Status(status), exit))
        }
        Command::Vms => {
            let vms = vms::vms(port()?)?;
            let exit = vms.exit();
            Ok((Answer::Vms(vms), exit))
        }
        Command::Submit { ticket } => {
            let words = Words::read(ticket)?;
            let mut show = |gone, all| show_progress("submit", gone, all);
            good(Answer::Submitted(submit::submit(port()?, &words, &mut show)?))
        }
        Command::Audit { since, chain, nonce } => {
            let query = audit::Query { since: since.unwrap_or(0), chain: *chain, nonce: *nonce };
            good(Answer::Audit(audit::audit(port()?, query)?))
        }
        Command::Receipt { vm, nonce, out } => {
            good(Answer::Receipt(receipt::receipt(port()?, *vm, nonce, out.as_deref())?))
        }
        Command::Check => {
            let mut show = |gone, all| show_progress("check", gone, all);
            good(Answer::Checked(check::check(port()?, &mut show)?))
        }
        Command::Destroy { vm } => good(Answer::Destroyed(vms::destroy(port()?, *vm)?)),
        Command::Ticket { command: Ticket::Make { description, ticket } } => {
            good(Answer::Made(make::make(description, ticket)?))
        }
        Command::Ticket { command: Ticket::Linux(order) } => {
            let made = measure::make(order)?;
            good(Answer::Made(Made::of(&made.ticket, made.bytes.len())))
        }
        Command::Attest { command } => good(Answer::Collected(attest::attest(command, port)?)),
        Command::Completions { shell } => {
            good(Answer::Completions { script: docs::completions(*shell) })
        }
        Command::Man { folder } => {
            docs::man(folder)?;
            good(Answer::Man {})
        }
    }
}

/// Shows on a terminal what part of the work is done.
fn show_progress(work: &str, gone: usize, all: usize) {
    let mut err = stderr();
    if err.is_terminal() {
        let percent = gone.saturating_mul(100).checked_div(all).unwrap_or(100);
        let end = if gone == all { "\n" } else { "" };
        // Nobody misses it.
        let _ = write!(err, "\r{work}: {percent:3} %{end}");
    }
}
