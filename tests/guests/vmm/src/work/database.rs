//! A database: SQLite keeps the accounts of a bank.

use super::program::{self, expected};
use super::{said, told};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::process::Command;

const ACCOUNTS: usize = 200;
const TRANSFERS: usize = 200;
/// What an account begins with.
const BALANCE: i64 = 1000;

const TRANSFERRING: &str = "/transfers.sql";
const ASKING: &str = "/questions.sql";
const BANK: &str = "/bank.db";

const SCHEMA: &str = "\
PRAGMA synchronous = FULL;
CREATE TABLE account(id INTEGER PRIMARY KEY, owner TEXT NOT NULL, balance INTEGER NOT NULL);
CREATE TABLE transfer(id INTEGER PRIMARY KEY, source INTEGER, target INTEGER, amount INTEGER);
CREATE INDEX transfer_target ON transfer(target);
CREATE INDEX transfer_source ON transfer(source);
";

/// The third is of accounts whose transfers do not explain their balance.
const QUESTIONS: &str = "\
SELECT count(*), sum(balance), min(balance), max(balance) FROM account;
SELECT source % 4, count(*), sum(amount) FROM transfer GROUP BY 1 ORDER BY 1;
SELECT count(*) FROM account WHERE balance <> 1000
    + (SELECT coalesce(sum(amount), 0) FROM transfer WHERE target = account.id)
    - (SELECT coalesce(sum(amount), 0) FROM transfer WHERE source = account.id);
SELECT count(*) FROM account WHERE owner LIKE '%99%';
PRAGMA integrity_check;
";

/// From one account to another.
struct Transfer {
    source: usize,
    target: usize,
    amount: i64,
}

/// Each transfer is a transaction of its own; then another process asks what there is now.
pub(crate) fn database() -> Result<(), String> {
    let transfers: Vec<Transfer> = (0..TRANSFERS).map(transfer).collect();
    fs::write(TRANSFERRING, statements(&transfers)).map_err(said)?;
    fs::write(ASKING, QUESTIONS).map_err(said)?;
    told("database", || {
        expected(&sqlite(TRANSFERRING)?, "")?;
        expected(&sqlite(ASKING)?, &answers(&transfers))
    })
}

fn sqlite(script: &str) -> Result<String, String> {
    let script = File::open(script).map_err(said)?;
    let mut command = Command::new("/usr/bin/sqlite3");
    program::output(command.args(["-batch", BANK]).env("HOME", "/").stdin(script))
}

/// Never to the account that it comes from.
fn transfer(number: usize) -> Transfer {
    let source = number * 37 % ACCOUNTS;
    let target = (source + 1 + number * 53 % (ACCOUNTS - 1)) % ACCOUNTS;
    let amount = i64::try_from(number % 90 + 1).unwrap_or(1);
    Transfer { source: source + 1, target: target + 1, amount }
}

fn owner(account: usize) -> String {
    format!("owner {:03}", account * 7919 % 1000)
}

fn statements(transfers: &[Transfer]) -> String {
    let mut text = format!("{SCHEMA}BEGIN;\n");
    for id in 1..=ACCOUNTS {
        let _ = writeln!(text, "INSERT INTO account VALUES({id}, '{}', {BALANCE});", owner(id));
    }
    text.push_str("COMMIT;\n");
    for Transfer { source, target, amount } in transfers {
        let _ = write!(
            text,
            "BEGIN;\n\
             UPDATE account SET balance = balance - {amount} WHERE id = {source};\n\
             UPDATE account SET balance = balance + {amount} WHERE id = {target};\n\
             INSERT INTO transfer(source, target, amount) VALUES({source}, {target}, {amount});\n\
             COMMIT;\n"
        );
    }
    text
}

/// What SQLite must answer to [`QUESTIONS`].
fn answers(transfers: &[Transfer]) -> String {
    let mut balances = [BALANCE; ACCOUNTS];
    let mut groups = [(0, 0); 4];
    for Transfer { source, target, amount } in transfers {
        balances[source - 1] -= amount;
        balances[target - 1] += amount;
        let (count, sum) = &mut groups[source % 4];
        *count += 1;
        *sum += amount;
    }
    let sum: i64 = balances.iter().sum();
    let (least, most) = (balances.iter().min(), balances.iter().max());
    let (least, most) = (least.unwrap_or(&0), most.unwrap_or(&0));
    let mut text = format!("{ACCOUNTS}|{sum}|{least}|{most}\n");
    for (group, (count, sum)) in groups.iter().enumerate() {
        let _ = writeln!(text, "{group}|{count}|{sum}");
    }
    let unexplained = 0;
    let found = (1..=ACCOUNTS).filter(|id| owner(*id).contains("99")).count();
    let _ = write!(text, "{unexplained}\n{found}\nok\n");
    text
}
