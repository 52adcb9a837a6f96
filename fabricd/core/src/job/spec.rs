//! What a dropped file asks for: a script with `#KOS` lines, or TOML. Pure, and every refusal names its line.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use kos_types::{Error, Kind, Result, limits};
use toml::de::{DeTable, DeValue};

/// The keys of both forms, for refusals.
const KEYS: &str = "name, time, mem, env, args, restart, and in TOML command";
/// A job's time is counted in seconds; a year is longer than any node lives.
const TIME_SECS_MAX: u64 = 366 * 86_400;

/// A job as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The name it gives itself.
    pub name: Option<String>,
    /// The program and its first arguments; none for a script, which is its own program.
    pub command: Option<Vec<String>>,
    /// Further arguments.
    pub args: Vec<String>,
    /// Variables of its environment.
    pub env: Vec<(String, String)>,
    /// Seconds it may run.
    pub time_secs: Option<u64>,
    /// Bytes of address space of each of its processes.
    pub mem_bytes: Option<u64>,
    /// Start it again when the node ended while it ran.
    pub restart: bool,
}

fn refused(line: usize, why: impl core::fmt::Display) -> Error {
    Error::new(Kind::Invalid, format!("line {line}: {why}"))
}

/// # Errors
/// `Invalid`, with the line and what is wrong with it.
pub fn parse(text: &[u8]) -> Result<Spec> {
    if text.len() > limits::JOB_SPEC_BYTES_MAX {
        let max = limits::JOB_SPEC_BYTES_MAX >> 20;
        return Err(Error::new(Kind::Invalid, format!("a job file has at most {max} MiB")));
    }
    let mut spec = Spec {
        name: None,
        command: None,
        args: Vec::new(),
        env: Vec::new(),
        time_secs: None,
        mem_bytes: None,
        restart: false,
    };
    if text.starts_with(b"#!") {
        script(&mut spec, text)?;
    } else {
        table(&mut spec, text)?;
    }
    Ok(spec)
}

/// Options stand in `#KOS` lines among the comments at the script's head.
fn script(spec: &mut Spec, text: &[u8]) -> Result<()> {
    let mut lines = (1..).zip(text.split(|&byte| byte == b'\n'));
    if let Some((number, first)) = lines.next() {
        if first.ends_with(b"\r") {
            return Err(refused(number, "ends with a carriage return: give the file Unix line ends"));
        }
        if !first[2..].trim_ascii_start().starts_with(b"/") {
            return Err(refused(number, "#! needs the interpreter's whole path, as #!/bin/sh"));
        }
    }
    for (number, line) in lines {
        let line = line.trim_ascii();
        if !line.is_empty() && !line.starts_with(b"#") {
            break;
        }
        let Some(options) = line.strip_prefix(b"#KOS") else { continue };
        let options = core::str::from_utf8(options).map_err(|_| refused(number, "not UTF-8"))?;
        for word in words(options).map_err(|why| refused(number, why))? {
            let option = word.strip_prefix("--").and_then(|option| option.split_once('='));
            let Some((key, value)) = option else {
                return Err(refused(number, format!("{word:?}: options are --key=value; keys: {KEYS}")));
            };
            set(spec, key, value).map_err(|why| refused(number, why))?;
        }
    }
    Ok(())
}

/// Split at blanks outside of double quotes.
fn words(line: &str) -> core::result::Result<Vec<String>, String> {
    let (mut words, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            '"' => (quoted, begun) = (!quoted, true),
            c if c.is_whitespace() && !quoted => {
                if core::mem::take(&mut begun) {
                    words.push(core::mem::take(&mut word));
                }
            }
            c => {
                word.push(c);
                begun = true;
            }
        }
    }
    if quoted {
        return Err("a double quote is not closed".to_owned());
    }
    if begun {
        words.push(word);
    }
    Ok(words)
}

/// Put one option in force, as a script's line says it.
fn set(spec: &mut Spec, key: &str, value: &str) -> core::result::Result<(), String> {
    match key {
        "name" => spec.name = Some(name(value)?),
        "time" => spec.time_secs = Some(seconds(value)?),
        "mem" => spec.mem_bytes = Some(bytes(value)?),
        "args" | "arg" => spec.args.push(plain(value)?),
        "restart" => {
            spec.restart = match value {
                "yes" => true,
                "no" => false,
                _ => return Err(format!("restart={value}: yes or no")),
            }
        }
        "env" => {
            let (name, value) =
                value.split_once('=').ok_or_else(|| format!("env={value}: --env=NAME=VALUE"))?;
            spec.env.push(variable(name, value)?);
        }
        _ => return Err(format!("unknown option --{key}; keys: {KEYS}")),
    }
    Ok(())
}

fn table(spec: &mut Spec, text: &[u8]) -> Result<()> {
    let line_at =
        |at: usize| 1 + text.get(..at).unwrap_or(text).iter().filter(|&&byte| byte == b'\n').count();
    let text = core::str::from_utf8(text).map_err(|e| {
        refused(line_at(e.valid_up_to()), "neither a script (#! in its first line) nor UTF-8 text")
    })?;
    let table = DeTable::parse(text).map_err(|e| {
        let line = line_at(e.span().map_or(0, |span| span.start));
        refused(line, format!("no TOML, and no script (#! in its first line): {}", e.message()))
    })?;
    for (key, value) in table.get_ref() {
        let line = line_at(key.span().start);
        toml_set(spec, key.get_ref(), value.get_ref()).map_err(|why| refused(line, why))?;
    }
    if spec.command.is_none() {
        return Err(refused(1, "command is missing: command = [\"PROGRAM\", \"ARG\", …] or a shell line"));
    }
    Ok(())
}

fn toml_set(spec: &mut Spec, key: &str, value: &DeValue<'_>) -> core::result::Result<(), String> {
    let text = || value.as_str().ok_or_else(|| format!("{key}: a string, not {}", value.type_str()));
    match key {
        "command" => {
            spec.command = Some(match value {
                DeValue::String(line) => ["/bin/sh", "-c", &*plain(line)?].map(ToOwned::to_owned).into(),
                _ => strings(key, value)?,
            });
            if spec.command.as_ref().is_some_and(|words| words.first().is_none_or(String::is_empty)) {
                return Err("command: names no program".to_owned());
            }
        }
        "args" => spec.args = strings(key, value)?,
        "time" | "mem" => match value {
            DeValue::Integer(number) if number.radix() == 10 => set(spec, key, number.as_str())?,
            _ => set(spec, key, text()?)?,
        },
        "restart" => {
            spec.restart = value.as_bool().ok_or_else(|| "restart: true or false".to_owned())?;
        }
        "env" => {
            let table = value.as_table().ok_or_else(|| "env: a table of strings".to_owned())?;
            for (name, value) in table {
                let value = value.get_ref().as_str().ok_or_else(|| format!("env.{name}: a string"))?;
                spec.env.push(variable(name.get_ref(), value)?);
            }
        }
        "name" => set(spec, key, text()?)?,
        _ => return Err(format!("unknown key {key:?}; keys: {KEYS}")),
    }
    Ok(())
}

fn strings(key: &str, value: &DeValue<'_>) -> core::result::Result<Vec<String>, String> {
    let wrong = || format!("{key}: an array of strings");
    let array = value.as_array().ok_or_else(wrong)?;
    array.iter().map(|word| plain(word.get_ref().as_str().ok_or_else(wrong)?)).collect()
}

/// What may stand in an argument or a variable.
fn plain(value: &str) -> core::result::Result<String, String> {
    if value.contains('\0') { Err("holds a NUL".to_owned()) } else { Ok(value.to_owned()) }
}

fn name(value: &str) -> core::result::Result<String, String> {
    if value.is_empty() || value.len() > limits::NAME_BYTES_MAX || value.contains(char::is_control) {
        return Err(format!("name: 1 to {} bytes without control characters", limits::NAME_BYTES_MAX));
    }
    Ok(value.to_owned())
}

fn variable(name: &str, value: &str) -> core::result::Result<(String, String), String> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(format!("env: {name:?} names no variable"));
    }
    if name == "PATH" || name.starts_with("KOS_") {
        return Err(format!("env: {name} is set by kosfs"));
    }
    Ok((name.to_owned(), plain(value)?))
}

/// `90`, `90s`, `10m`, `2h`, `1d`, `HH:MM:SS`.
fn seconds(value: &str) -> core::result::Result<u64, String> {
    let wrong = || format!("time={value}: seconds, or as 10m, 2h, 1d, 01:30:00; at least 1 second");
    let number = |text: &str| digits(text).ok_or_else(wrong);
    let secs = if value.contains(':') {
        let mut secs = 0_u64;
        for part in value.split(':') {
            secs = secs
                .checked_mul(60)
                .and_then(|secs| secs.checked_add(number(part).ok()?))
                .ok_or_else(wrong)?;
        }
        Some(secs)
    } else {
        let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
        let (count, unit) = with_unit(value, &units);
        number(count)?.checked_mul(unit)
    };
    secs.filter(|secs| (1..=TIME_SECS_MAX).contains(secs)).ok_or_else(wrong)
}

/// `4096`, `512K`, `512M`, `2G`, `1T`.
fn bytes(value: &str) -> core::result::Result<u64, String> {
    let units = [("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40)];
    let (count, unit) = with_unit(value, &units);
    let bytes = digits(count).and_then(|count| count.checked_mul(unit)).filter(|&bytes| bytes > 0);
    bytes.ok_or_else(|| format!("mem={value}: bytes, or as 512M, 2G"))
}

fn with_unit<'a>(value: &'a str, units: &[(&str, u64)]) -> (&'a str, u64) {
    let found = units.iter().find_map(|&(unit, factor)| Some((value.strip_suffix(unit)?, factor)));
    found.unwrap_or((value, 1))
}

/// parse() would take a sign.
fn digits(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.to_string().parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(text: &str) -> String {
        parse(text.as_bytes()).expect_err(text).to_string()
    }

    #[test]
    fn a_script_with_options() {
        let text = "#!/bin/sh\n# comment\n#KOS --name=sum --time=10m --mem=2G\n\n#KOS --env=A=\"b c\" --args=x --args=\"y z\" --restart=yes\necho\n#KOS --late=1\n";
        let spec = parse(text.as_bytes()).expect("good");
        assert_eq!(
            (spec.name.as_deref(), spec.time_secs, spec.mem_bytes),
            (Some("sum"), Some(600), Some(2 << 30))
        );
        assert_eq!(spec.env, [("A".to_owned(), "b c".to_owned())]);
        assert_eq!(
            (spec.args, spec.restart, spec.command),
            (alloc::vec!["x".into(), "y z".into()], true, None)
        );
        assert_eq!(parse(b"#!/bin/sh").expect("short").time_secs, None);
        assert!(parse(b"#! /bin/sh\n\xff\xfe\0").is_ok(), "the body may be any bytes");
    }

    #[test]
    fn a_table() {
        let text = "name = \"wc\"\ncommand = [\"wc\", \"-c\"]\nargs = [\"f\"]\ntime = 60\nmem = \"1M\"\nrestart = true\n[env]\nLANG = \"C\"\n";
        let spec = parse(text.as_bytes()).expect("good");
        assert_eq!(spec.command, Some(alloc::vec!["wc".into(), "-c".into()]));
        assert_eq!((spec.time_secs, spec.mem_bytes, spec.restart), (Some(60), Some(1 << 20), true));
        assert_eq!(
            (spec.args, spec.env),
            (alloc::vec!["f".into()], alloc::vec![("LANG".into(), "C".into())])
        );
        let line = parse(b"command = \"echo $HOME\"").expect("a shell line").command.expect("command");
        assert_eq!(line, ["/bin/sh", "-c", "echo $HOME"]);
    }

    #[test]
    fn refusals_name_the_line_and_the_key() {
        for (text, line, word) in [
            ("#!/bin/sh\n#KOS --cpus=3\n", 2, "--cpus"),
            ("#!/bin/sh\n\n#KOS time=3\n", 3, "time=3"),
            ("#!/bin/sh\n#KOS --time=+3\n", 2, "time"),
            ("#!/bin/sh\n#KOS --time=0\n", 2, "time"),
            ("#!/bin/sh\n#KOS --time=1:xx\n", 2, "time"),
            ("#!/bin/sh\n#KOS --mem=99999999999T\n", 2, "mem"),
            ("#!/bin/sh\n#KOS --restart=maybe\n", 2, "restart"),
            ("#!/bin/sh\n#KOS --env=PATH=/x\n", 2, "PATH"),
            ("#!/bin/sh\n#KOS --name=\"a\n", 2, "quote"),
            ("#!sh\n", 1, "interpreter"),
            ("#!/bin/sh\r\n", 1, "carriage"),
            ("", 1, "command"),
            ("name = \"x\"\n", 1, "command"),
            ("command = [\"x\"]\n\nimage = 3\n", 3, "image"),
            ("command = [\"x\"]\ntime = \"1y\"\n", 2, "time"),
            ("command = []\n", 1, "program"),
            ("command = [1]\n", 1, "strings"),
            ("command = \"x\"\n[env]\nKOS_X = \"1\"\n", 2, "KOS_X"),
            ("command = \"x\"\ncommand = \"y\"\n", 2, "duplicate"),
            ("echo hello\n", 1, "TOML"),
            ("command = \"a\\u0000\"\n", 1, "NUL"),
        ] {
            let why = why(text);
            assert!(why.starts_with(&format!("line {line}: ")) && why.contains(word), "{text:?}: {why}");
        }
        assert!(parse(b"\x7fELF\xff").is_err());
        assert!(parse(&alloc::vec![b'#'; limits::JOB_SPEC_BYTES_MAX + 1]).is_err());
    }
}
