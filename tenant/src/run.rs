//! From words to an answer and an exit code.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use evidence::Readers;

use crate::cli::{Cli, Command, Enroll, PolicyCommand};
use crate::enroll::{Believed, Files};
use crate::failure::{Exit, Failure};
use crate::reply::{self, Answer};
use crate::seal::{Order, Waived};
use crate::{check, disks, docs, eat, enroll, expect, made, receipt, report, seal};

/// Does what `cli` says at `now`, in seconds since 1970, and reports to `out`; for people, failures go to
/// `err`.
pub fn run(cli: &Cli, now: u64, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    finish(cli, || answer(&cli.command, now), out, err)
}

/// Reports what `work` comes to. Where it panics, that is a bug, and never an answer.
fn finish(
    cli: &Cli,
    work: impl FnOnce() -> Result<(Answer, Exit), Failure>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Exit {
    let command = cli.command.name();
    let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|why| {
        let text = why.downcast_ref::<&str>().map(ToString::to_string);
        Err(Failure::Bug(text.or_else(|| why.downcast_ref().cloned()).unwrap_or_default()))
    });
    let told = done.and_then(|(answer, exit)| {
        let text = if cli.json {
            reply::answer(command, &answer, exit) + "\n"
        } else {
            answer.to_string()
        };
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)?;
        Ok(exit)
    });
    told.unwrap_or_else(|failure| {
        // Where neither can be written, the exit code must do.
        let _ = if cli.json {
            writeln!(out, "{}", reply::failure(command, &failure))
        } else {
            writeln!(err, "tenant: {failure}")
        };
        failure.exit()
    })
}

fn answer(command: &Command, now: u64) -> Result<(Answer, Exit), Failure> {
    let good = |answer| Ok((answer, Exit::Trusted));
    match command {
        Command::Enroll { command } => good(Answer::Enrolled(enroll(command, now)?)),
        Command::Challenge { policy, out, minutes } => {
            good(Answer::Challenged(check::challenge(policy, out, *minutes, now)?))
        }
        Command::Verify(files) => {
            let verified = check::check(files, now)?;
            let exit = verified.exit();
            Ok((Answer::Verified(Box::new(verified)), exit))
        }
        Command::Report { verification, out } => {
            let verified = check::check(verification, now)?;
            let page = report::page(&verified);
            evidence::create(out, page.as_bytes(), Readers::All)
                .map_err(|why| Failure::File(out.clone(), why))?;
            let exit = verified.exit();
            Ok((Answer::Verified(Box::new(verified)), exit))
        }
        Command::Key { out } => good(Answer::Key(seal::make_key(out)?)),
        Command::Measure(order) => good(Answer::Measured(made::measure(order)?)),
        Command::Seal { ticket, verification, key, out, record, serial, lifetime, insecure } => {
            let verified = check::check(verification, now)?;
            let waiver = if *insecure { Waived::Taken } else { Waived::Refused };
            let order = Order {
                ticket,
                key,
                out,
                record,
                serial: serial.unwrap_or(now.max(1)),
                lifetime: *lifetime,
            };
            good(Answer::Sealed(seal::seal(&verified, waiver, &order)?))
        }
        Command::Receipt { receipt, record, challenge } => {
            good(Answer::Receipt(receipt::check(receipt, record, challenge, now)?))
        }
        Command::Image { command } => disks::run(command),
        Command::Policy { command: PolicyCommand::Test { policy, cases } } => {
            good(Answer::Tested(check::test_policy(policy, cases.as_deref())?))
        }
        Command::Expect { visor, command_line } => {
            good(Answer::Expected(expect::expect(visor, command_line)?))
        }
        Command::Convert { evidence, out } => good(Answer::Converted(eat::convert(evidence, out)?)),
        Command::Diff { before, after } => good(Answer::Differences(expect::diff(before, after)?)),
        Command::Completions { shell } => {
            good(Answer::Completions { script: docs::completions(*shell) })
        }
        Command::Man { folder } => {
            docs::man(folder)?;
            good(Answer::Man {})
        }
    }
}

fn enroll(command: &Enroll, now: u64) -> Result<enroll::Enrolled, Failure> {
    match command {
        Enroll::Begin { identity, roots, pin_ek, pending, activation } => {
            let believed = pin_ek.as_ref().map_or(Believed::Roots(roots), Believed::Name);
            enroll::begin(identity, &believed, &Files { pending, activation }, now)
        }
        Enroll::Finish { pending, activated, machine } => {
            enroll::finish(pending, activated, machine, now)
        }
        Enroll::Pin { identity, ak, machine } => enroll::pin(identity, ak, machine, now),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::finish;
    use crate::cli::Cli;
    use crate::failure::Exit;

    #[test]
    fn a_panic_is_a_bug_and_no_verdict() {
        let cli = Cli::parse_from(["tenant", "--json", "man", "x"]);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = finish(&cli, || panic!("there"), &mut out, &mut err);
        assert_eq!((exit, exit.code()), (Exit::Bug, 6));
        let line = String::from_utf8(out).unwrap();
        assert!(line.contains(r#""exit":6,"error":{"code":"bug","#), "{line}");
    }
}
