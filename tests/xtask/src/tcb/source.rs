//! Counting lines of Rust that hold code: neither blank, nor comment, nor test.

/// What a source file amounts to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Lines with code.
    pub(crate) code: usize,
    /// Those of them inside, or that open, something marked `unsafe`.
    pub(crate) unsafe_code: usize,
    /// Modules declared for tests only: their files do not count.
    pub(crate) test_modules: Vec<String>,
}

/// Counts `source`.
pub(crate) fn count(source: &str) -> Counted {
    let (text, test_modules) = without_tests(&masked(source));
    let unsafe_lines = unsafe_lines(&text);
    let code = |line: &&str| !line.trim().is_empty();
    let numbered = text.lines().enumerate().filter(|(_, line)| code(line));
    let is_unsafe = |at: usize| unsafe_lines.iter().any(|lines| lines.contains(&at));
    Counted {
        code: text.lines().filter(code).count(),
        unsafe_code: numbered.filter(|(at, _)| is_unsafe(*at)).count(),
        test_modules,
    }
}

/// Lines of assembly that hold code. Comments are whole lines or follow the code.
pub(crate) fn count_assembly(source: &str) -> usize {
    let comment = |line: &str| ["//", "#", "/*", "*"].iter().any(|mark| line.starts_with(mark));
    source.lines().map(str::trim).filter(|line| !line.is_empty() && !comment(line)).count()
}

/// `source` with comments blanked and the content of literals replaced, line ends kept: what is
/// left has no brace and no word that is not code.
fn masked(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let length = token_length(rest).unwrap_or_else(|| first.len_utf8());
        let (token, after) = rest.split_at(length);
        let comment = token.starts_with("//") || token.starts_with("/*");
        let literal = !comment && is_literal(token);
        let mask = |c: char| match c {
            c if c.is_whitespace() => c,
            _ if comment => ' ',
            _ if literal => '"',
            c => c,
        };
        out.extend(token.chars().map(mask));
        rest = after;
    }
    out
}

fn is_literal(token: &str) -> bool {
    token.len() > 1
        && (token.starts_with(['"', '\'']) || token.starts_with("r\"") || token.starts_with("r#"))
}

/// The length of the comment, literal or word at the start of `rest`; `None` for anything else.
fn token_length(rest: &str) -> Option<usize> {
    let to_end = |found: Option<usize>| found.unwrap_or(rest.len());
    if rest.starts_with("//") {
        return Some(to_end(rest.find('\n')));
    }
    if rest.starts_with("/*") {
        return Some(block_comment(rest));
    }
    if let Some(hashes) = raw_string_hashes(rest) {
        let close = format!("\"{}", "#".repeat(hashes));
        let open = hashes + 2;
        let body = rest.get(open..)?;
        return Some(to_end(body.find(&close).map(|at| open + at + close.len())));
    }
    if rest.starts_with('"') {
        return Some(to_end(quoted(rest, '"')));
    }
    if rest.starts_with('\'') {
        return char_literal(rest);
    }
    let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    (word > 0).then_some(word)
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(here) = rest.get(at..).filter(|here| !here.is_empty()) {
        if here.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with("*/") {
            depth = depth.saturating_sub(1);
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += here.chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The number of hashes of the raw string that begins here.
fn raw_string_hashes(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after.get(hashes..)?.starts_with('"').then_some(hashes)
}

/// The length of what stands between two `quote`s, with them.
fn quoted(rest: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// A character literal, as opposed to a lifetime.
fn char_literal(rest: &str) -> Option<usize> {
    let mut chars = rest.chars().skip(1);
    let (first, second) = (chars.next()?, chars.next()?);
    (first == '\\' || second == '\'').then(|| quoted(rest, '\'')).flatten()
}

/// `text` (masked) with every item blanked that only tests and tools see, and the names of such modules
/// that lie in files of their own.
fn without_tests(text: &str) -> (String, Vec<String>) {
    // The second: what a feature adds that the visor does not ask for. Its name is masked.
    const MARKS: [&str; 2] = ["#[cfg(test)]", "#[cfg(any(test, feature ="];
    let mut out = String::new();
    let mut modules = Vec::new();
    let mut rest = text;
    while let Some(at) = MARKS.iter().filter_map(|mark| rest.find(mark)).min() {
        let (before, item) = rest.split_at(at);
        let (item, after) = item.split_at(item_length(item));
        if let Some(name) = item.trim_end_matches(';').split("mod ").nth(1)
            && item.ends_with(';')
        {
            modules.push(name.trim().to_owned());
        }
        out.push_str(before);
        out.extend(item.chars().filter(|c| *c == '\n'));
        rest = after;
    }
    out.push_str(rest);
    (out, modules)
}

/// The length of the item at the start of `text`: to the first `;` or the end of the first block
/// outside parentheses and brackets.
fn item_length(text: &str) -> usize {
    let (mut braces, mut others) = (0_usize, 0_usize);
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' => others += 1,
            ')' | ']' => others = others.saturating_sub(1),
            '{' => braces += 1,
            '}' => braces = braces.saturating_sub(1),
            _ => {}
        }
        let closed = c == '}' || c == ';';
        if closed && braces == 0 && others == 0 {
            let (item, after) = text.split_at(at + 1);
            // `use a::{b, c};` has a block and a semicolon.
            return item.len() + usize::from(after.starts_with(';'));
        }
    }
    text.len()
}

/// The line numbers, from 0, of what is marked `unsafe`: a whole block, or else only the line
/// (the body of an `unsafe fn` is no unsafe context by itself).
fn unsafe_lines(text: &str) -> Vec<std::ops::RangeInclusive<usize>> {
    let word = |at: usize| {
        let around = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let (before, here) = text.split_at(at);
        !around(before.chars().next_back()) && !around(here.chars().nth("unsafe".len()))
    };
    let found = text.match_indices("unsafe").map(|(at, _)| at).filter(|at| word(*at));
    let lines = found.map(|at| {
        let (before, here) = text.split_at(at);
        let first = before.matches('\n').count();
        let after = here.trim_start_matches("unsafe").trim_start();
        let block = after.starts_with('{') || after.starts_with("impl");
        let length = if block { item_length(here) } else { 0 };
        let inside = here.get(..length).map_or(0, |item| item.matches('\n').count());
        first..=first + inside
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_and_comments_of_every_kind_are_not_code() {
        let source = "//! doc\n\n/// doc\nfn a() { // why\n    /* two\n lines /* nested */ */\n}\n";
        assert_eq!(count(source).code, 2);
    }

    #[test]
    fn what_looks_like_a_comment_in_a_literal_is_code() {
        let source =
            "const A: &str = \"// no\";\nconst B: &str = r#\"/*\"#;\nconst C: char = '\"';\n";
        assert_eq!(count(source).code, 3);
        assert_eq!(count("const A: &str = \"one\n  // two\";\nfn f<'a>(x: &'a str) {}\n").code, 3);
    }

    #[test]
    fn test_modules_and_items_do_not_count() {
        let source = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n";
        assert_eq!(count(source).code, 2);
        let source = "#[cfg(test)]\nuse x::{y, z};\n#[cfg(test)]\nmod fakes;\nfn c() {}\n";
        let counted = count(source);
        assert_eq!((counted.code, counted.test_modules), (1, vec!["fakes".to_owned()]));
        let source = "#[cfg(any(test, feature = \"std\"))]\npub mod build;\nfn c() {}\n";
        let counted = count(source);
        assert_eq!((counted.code, counted.test_modules), (1, vec!["build".to_owned()]));
    }

    #[test]
    fn unsafe_blocks_count_in_full_and_unsafe_functions_by_their_signature() {
        let source = "unsafe fn f() {\n    g();\n    unsafe {\n        // SAFETY: fine.\n        h()\n    }\n}\n";
        let counted = count(source);
        assert_eq!((counted.code, counted.unsafe_code), (6, 4));
    }

    #[test]
    fn the_word_unsafe_in_names_comments_and_text_is_not_unsafe() {
        let source = "#![forbid(unsafe_code)]\n// unsafe\nconst A: &str = \"unsafe {\";\n";
        assert_eq!(count(source).unsafe_code, 0);
    }

    #[test]
    fn assembly_is_counted_without_its_comments() {
        assert_eq!(count_assembly("# a\n\nstart:\n    // b\n    mov eax, 1 # c\n"), 2);
    }
}
