use boot::cmdline::{CmdlineError, LogLevel, OnPanic, Options, Quirk, Serial, WORDS, cook, parse};
use proptest::prelude::*;

#[test]
fn an_empty_line_gives_the_defaults() {
    let serial = Serial::Port { port: 0x3f8, baud: 115_200 };
    let options = parse(b"   ").expect("nothing is wrong");
    assert_eq!(options, Options::default());
    assert_eq!(options.serial, serial);
    assert_eq!(options.log, LogLevel::Info);
}

#[test]
fn every_word_does_what_it_says() {
    let line = b"log=debug serial=0x2f8,9600   panic=reset quirk=bochs-init vmcs-shadowing=off \
                 dev-tickets unprotected-vms=refuse insecure-no-iommu insecure-processor";
    let expected = Options {
        log: LogLevel::Debug,
        serial: Serial::Port { port: 0x2f8, baud: 9600 },
        panic: OnPanic::Reset,
        quirk: Quirk::BochsInit,
        vmcs_shadowing: false,
        dev_tickets: true,
        unprotected_vms: false,
        without_iommu: true,
        leaky_processor: true,
    };
    assert_eq!(parse(line), Ok(expected));
    let line = parse(b"vmcs-shadowing=on");
    assert!(line.is_ok_and(|options| options.vmcs_shadowing && !options.dev_tickets));
    assert!(parse(b"unprotected-vms=run").is_ok_and(|options| options.unprotected_vms));
    assert!(parse(b"insecure-no-iommu=off").is_ok_and(|options| !options.without_iommu));
    assert!(parse(b"insecure-processor=off").is_ok_and(|options| !options.leaky_processor));
    // The one says nothing of the other.
    assert!(parse(b"insecure-processor").is_ok_and(|options| !options.without_iommu));
    assert!(parse(b"insecure-no-iommu").is_ok_and(|options| !options.leaky_processor));
}

#[test]
fn every_documented_value_is_taken() {
    for word in WORDS {
        for value in word.values.split('|') {
            let value = value.replace("0xPORT[,BAUD]", "0x3e8,57600").replace('N', "2");
            let line = format!("{}={value}", word.name);
            assert!(parse(line.as_bytes()).is_ok(), "{line}");
        }
    }
}

#[test]
fn the_four_usual_ports_have_names() {
    for (name, expected) in [("com1", 0x3f8), ("com2", 0x2f8), ("com3", 0x3e8), ("com4", 0x2e8)] {
        let line = format!("serial={name}");
        let options = parse(line.as_bytes()).expect("a good line");
        let Serial::Port { port, .. } = options.serial else {
            panic!("{name} is a port");
        };
        assert_eq!(port, expected);
    }
}

#[test]
fn an_unknown_word_is_refused_by_name() {
    assert_eq!(parse(b"log=info iommu=off"), Err(CmdlineError::UnknownWord("iommu=off")));
    let message = parse(b"foo").map_err(|error| error.to_string());
    assert_eq!(message, Err("command line: unknown word \"foo\"".to_owned()));
}

#[test]
fn a_repeated_word_is_refused() {
    assert_eq!(parse(b"panic=halt panic=halt"), Err(CmdlineError::Repeated("panic=halt")));
}

#[test]
fn a_bad_value_is_refused() {
    for word in [
        "log",
        "log=",
        "log=Info",
        "panic=stop",
        "serial=com5",
        "serial=3f8",
        "serial=0x",
        "serial=0x+3f8",
        "serial=0xfff9",
        "serial=0x10000",
        "serial=com1,0",
        "serial=com1,7000",
        "serial=com1,",
        "serial=com1,230400",
        "serial=off,9600",
        "serial=com1,9600,8n1",
        "insecure-no-iommu=1",
        "insecure-processor=1",
    ] {
        assert_eq!(parse(word.as_bytes()), Err(CmdlineError::BadValue(word)));
    }
}

#[test]
fn control_characters_and_other_alphabets_are_refused() {
    assert_eq!(parse(b"log=info\tpanic=halt"), Err(CmdlineError::NotText(b'\t')));
    assert_eq!(parse(b"log=\x1b[31m"), Err(CmdlineError::NotText(0x1b)));
    assert_eq!(parse("log=é".as_bytes()), Err(CmdlineError::NotText(0xc3)));
}

#[test]
fn a_long_word_makes_a_short_message() {
    let line = "x".repeat(5000);
    let error = parse(line.as_bytes()).expect_err("an unknown word");
    assert!(error.to_string().len() < 80);
}

#[test]
fn grub_2_leaves_the_image_name_out() {
    assert_eq!(cook(b" log=info", b"GRUB 2.06"), b"log=info");
    assert_eq!(cook(b"/visor.elf  log=info", b"GNU GRUB 0.97"), b"log=info");
    assert_eq!(cook(b"visor.elf log=info", b"qemu"), b"log=info");
    assert_eq!(cook(b"visor.elf", b"mboot.c32"), b"");
    assert_eq!(cook(b"visor.elf a b", b""), b"a b");
    assert_eq!(cook(b"", b"qemu"), b"");
}

proptest! {
    #[test]
    fn every_line_of_known_words_is_taken(
        log in "(log=(off|error|warn|info|debug))?",
        serial in "(serial=(off|com[1-4]|0x[0-9a-e][0-9a-f]{0,3}(,(9600|115200|300))?))?",
        panic in "(panic=(halt|reset))?",
    ) {
        let line = format!("{serial}  {log} {panic}");
        prop_assert!(parse(line.as_bytes()).is_ok(), "{}", line);
    }

    #[test]
    fn no_line_makes_the_parser_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = parse(cook(&line, b"")) {
            prop_assert!(error.to_string().starts_with("command line: "));
        }
    }
}
