//! Job files, dropped by anybody: every one is accepted or refused with a reason, and what was accepted can be run.

use kos_core::job::spec::parse;
use kos_types::Kind;

pub(crate) fn run(data: &[u8]) {
    let Ok(spec) = parse(data) else {
        let refused = parse(data).expect_err("refused again");
        assert!(refused.kind() == Kind::Invalid && refused.step().starts_with("line "), "{refused}");
        return;
    };
    assert_eq!(spec.command.is_none(), data.starts_with(b"#!"));
    let words = spec.command.iter().flatten().chain(&spec.args);
    let values = spec.env.iter().flat_map(|(name, value)| [name, value]);
    assert!(words.chain(values).all(|text| !text.contains('\0')));
    assert!(spec.command.iter().all(|words| !words.is_empty() && !words[0].is_empty()));
    assert!(spec.env.iter().all(|(name, _)| !name.is_empty() && !name.contains('=') && name != "PATH"));
    assert!(spec.name.is_none_or(|name| !name.is_empty() && name.len() <= 255));
    assert!(spec.time_secs != Some(0) && spec.mem_bytes != Some(0));
}
