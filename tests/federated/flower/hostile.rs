//! Servers that answer garbage, or nothing, or what no node should take; clocks that are wrong.

use super::superlink::{Object, object, object_answer, put};
use super::*;
use crate::common::Random;

/// What is no answer to anything.
fn garbage() -> [(u16, Vec<u8>); 5] {
    [
        (200, vec![0xff; 9]),
        (200, b"<html>a captive portal</html>".to_vec()),
        (500, Vec::new()),
        (503, b"{\"code\": 2010, \"detail\": \"Fleet API type is not initialized.\"}".to_vec()),
        (429, b"\0\xff".to_vec()),
    ]
}

/// Answers badly from step `at` on, until the node gives up: what it says, and the requests that it
/// made meanwhile.
fn gives_up(at: usize, bad: Option<&(u16, Vec<u8>)>) -> Option<(Error, Vec<&'static str>)> {
    let (mut host, mut link) = (Host::new(), SuperLink::new());
    for _ in 0..at {
        if let Step::Over(_) = host.with(&mut link) {
            return None;
        }
    }
    let mut asked = Vec::new();
    host.waited = Duration::ZERO;
    for _ in 0..200 {
        match host.next() {
            Ok(Step::Send(request)) => {
                asked.push(request.path.rsplit('/').next().unwrap());
                match bad {
                    Some((status, body)) => host.give(*status, body),
                    None => host.client.answer(host.now, Answer::Nothing),
                }
            }
            Ok(Step::Work(_)) => host.reply(),
            Ok(Step::Over(_)) => return None,
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                assert!(host.waited > Duration::from_secs(500), "{:?}", host.waited);
                return Some((error, asked));
            }
        }
    }
    panic!("it never gives up");
}

#[test]
fn garbage_and_silence_are_borne_with_and_then_said() {
    for at in 0.. {
        let mut was_over = false;
        for bad in garbage().iter().map(Some).chain([None]) {
            let Some((error, asked)) = gives_up(at, bad) else {
                was_over = true;
                break;
            };
            // Each wait is twice as long: ten minutes are few requests.
            assert!((10..40).contains(&asked.len()), "step {at}: {asked:?}");
            let Error::SuperLink { call, reason } = &error else { panic!("{error}") };
            assert_eq!(Some(call), asked.last(), "{reason}");
            assert!(reason.contains("start again later"), "{reason}");
            assert!(!error.to_string().contains('\n'));
        }
        if was_over {
            assert!(at > 15, "{at}");
            break;
        }
    }
}

#[test]
fn a_server_that_comes_back_is_gone_on_with() {
    let (mut host, mut link) = (Host::new(), SuperLink::new());
    let (mut failures, mut random) = (0, Random::new(5));
    loop {
        match host.next().unwrap() {
            // Half of all requests are lost before they are heard.
            Step::Send(_) if random.below(2) == 0 => {
                failures += 1;
                host.client.answer(host.now, Answer::Nothing);
                assert!(host.client.trouble().is_some());
            }
            Step::Send(request) => {
                let (status, body) = link.answer(request.path, &request.body);
                host.give(status, &body);
            }
            Step::Work(_) => host.reply(),
            Step::Over(end) => {
                assert_eq!(end, End::Delivered);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(failures > 5, "{failures}");
    // A request that nobody answered at all counts the same.
    let mut silent = Host::new();
    let first = silent.request();
    let again = silent.request();
    assert_eq!(first.body, again.body);
    assert!(silent.waited >= Duration::from_millis(800));
}

#[test]
fn a_clock_that_is_wrong_is_set_right_by_the_servers() {
    let golden = written();
    let node = bytes(&golden["answers"]["node"]);
    let timestamp = |request: &Request| {
        request.headers.iter().find(|(key, _)| *key == "flwr-timestamp").unwrap().1.clone()
    };
    let date = "Sun, 29 Nov 2026 02:18:34 GMT";
    for wrong in [0.0, 100.0, ASKED - 1e6, ASKED + 1e6] {
        let mut host = Host::new();
        host.now = Duration::from_secs_f64(wrong);
        let first = host.request();
        let denied = Answer::Http { status: 401, date: Some(date), body: b"{}" };
        host.client.answer(host.now, denied);
        let second = host.request();
        assert_eq!(second.path, first.path);
        assert!(timestamp(&second).starts_with("2026-11-29T02:18:34"), "{}", timestamp(&second));
        host.give(200, &node);
        host.expect("activate-node", 200, &node);
        host.expect("pull-messages", 200, &bytes(&golden["answers"]["message"]));
        for answer in golden["answers"]["objects"].as_array().unwrap() {
            host.expect("pull-object", 200, &bytes(answer));
        }
        host.expect("confirm-message-received", 200, &[]);
        host.task();
        host.reply();
        // By the server's clock: the reply is neither too old nor from the future.
        let request = host.request();
        let metadata = &superlink::get(&superlink::get(&request.body, 2)[0], 1)[0];
        // `created_at` is field 9, eight bytes.
        let field = metadata.windows(9).filter(|w| w[0] == 9 << 3 | 1);
        let mut times = field.map(|w| f64::from_le_bytes(w[1..].try_into().unwrap()));
        let near = times.any(|time| (time - ASKED).abs() < 10.0);
        assert!(near, "{wrong}");
    }
    // A clock that is right, or no date: it is the key.
    for date in [None, Some("Sun, 29 Nov 2026 02:17:34 GMT"), Some("never")] {
        let mut host = Host::new();
        host.request();
        host.client.answer(host.now, Answer::Http { status: 401, date, body: b"{}" });
        let error = host.next().unwrap_err().to_string();
        assert!(error.contains("registered"), "{error}");
    }
}

#[test]
fn a_key_that_is_not_registered_is_said_at_once() {
    let mut host = Host::new();
    host.expect("register-node", 412, b"{\"code\": 2001, \"detail\": \"by the CLI\"}");
    host.expect("activate-node", 412, b"{\"code\": 2004}");
    let error = host.next().unwrap_err().to_string();
    assert!(error.contains("flwr supernode register"), "{error}");
    // The next start asks again, and waits for nothing.
    host.restart();
    host.expect("register-node", 412, b"{\"code\": 2001}");
    host.expect("activate-node", 200, &bytes(&written()["answers"]["node"]));
    host.expect("pull-messages", 200, &[]);
    assert_eq!(host.waited, Duration::ZERO);
}

#[test]
fn what_is_not_flower_is_said_at_once() {
    for (status, says) in [(404, "flwr"), (302, "302"), (400, "bad request"), (403, "no")] {
        let mut host = Host::new();
        let body = format!("{{\"detail\": \"bad request, no\\n{}\"}}", "x".repeat(4000));
        host.expect("register-node", status, body.as_bytes());
        let error = host.next().unwrap_err().to_string();
        assert!(error.contains(says) && error.len() < 400 && !error.contains('\n'), "{error}");
    }
}

#[test]
fn a_node_that_was_forgotten_registers_anew() {
    let (mut host, mut link) = (Host::new(), SuperLink::new());
    host.until_work(&mut link);
    host.now += Duration::from_secs(50);
    let golden = written();
    host.expect("send-node-heartbeat", 200, &bytes(&golden["answers"]["unknown"]));
    assert!(matches!(host.next().unwrap(), Step::Over(End::Dropped(_))));
    host.expect("register-node", 200, &bytes(&golden["answers"]["node"]));
    host.expect("activate-node", 200, &bytes(&golden["answers"]["node"]));
    // It activates, but then takes no signature: that is no loop.
    for _ in 0..20 {
        match host.next() {
            Ok(Step::Send(request)) => match request.path.rsplit('/').next().unwrap() {
                "register-node" | "activate-node" => {
                    host.give(200, &bytes(&golden["answers"]["node"]));
                }
                _ => host.give(401, b"{}"),
            },
            Ok(other) => panic!("{other:?}"),
            Err(error) => return assert!(error.to_string().contains("signature"), "{error}"),
        }
    }
    panic!("it goes on for ever");
}

#[test]
fn what_nobody_waits_for_is_dropped() {
    let golden = written();
    let over = b"{\"code\": 2007, \"detail\": \"not allowed\"}";
    let gone = bytes(&golden["answers"]["object_gone"]);
    for (status, body) in [(403, &over[..]), (200, &gone)] {
        let (mut host, mut link) = (Host::new(), SuperLink::new());
        while !link.is_given {
            host.with(&mut link);
        }
        host.expect("pull-object", status, body);
        assert!(matches!(host.next().unwrap(), Step::Over(End::Dropped(_))));
        host.expect("pull-messages", 200, &[]);
    }
    // A session that ran out: announced again.
    let (mut host, mut link) = (Host::new(), SuperLink::new());
    host.until_work(&mut link);
    host.reply();
    host.expect("push-messages", 200, &bytes(&golden["answers"]["accepted"]));
    host.expect("push-object", 200, &bytes(&golden["answers"]["not_stored"]));
    assert_eq!(host.finish(&mut link), Some(End::Delivered));
    // A reply that the SuperLink does not take: the round went on without it.
    let (mut host, mut link) = (Host::new(), SuperLink::new());
    host.until_work(&mut link);
    host.reply();
    host.expect("push-messages", 200, &put(4, b"session"));
    assert!(matches!(host.next().unwrap(), Step::Over(End::Dropped(_))));
    // Announced before a restart, it may be there whole; later it is not.
    for (seconds, is_there) in [(100, true), (200, false)] {
        let (mut host, mut link) = (Host::new(), SuperLink::new());
        host.until_work(&mut link);
        host.reply();
        host.request();
        host.restart();
        host.now += Duration::from_secs(seconds);
        host.expect("send-node-heartbeat", 200, &bytes(&golden["answers"]["alive"]));
        host.expect("push-messages", 200, &put(4, b"session"));
        for _ in 0..6 {
            host.expect("push-object", 200, &bytes(&golden["answers"]["not_stored"]));
        }
        match host.next().unwrap() {
            Step::Over(end) => assert_eq!(end == End::Delivered, is_there, "{end:?}"),
            other => panic!("{other:?}"),
        }
    }
    // Work that took longer than the message's time.
    let (mut host, mut link) = (Host::new(), SuperLink::new());
    host.until_work(&mut link);
    host.now += Duration::from_secs(43_300);
    host.reply();
    assert!(matches!(host.next().unwrap(), Step::Over(End::Dropped(_))));
}

/// Hands a node a message of these objects: what it says about it.
fn refusal(content: &Object, objects: &[&Object]) -> String {
    let golden = written();
    let message = superlink::get(&bytes(&golden["answers"]["message"]), 2).remove(0);
    let root = object("Message", &[content], b"");
    let (mut host, node) = (Host::new(), bytes(&golden["answers"]["node"]));
    host.expect("register-node", 200, &node);
    host.expect("activate-node", 200, &node);
    let old = superlink::get(&superlink::get(&message, 1)[0], 2).remove(0);
    let at = message.windows(old.len()).position(|window| *window == old).unwrap();
    let mut message = message;
    message[at..at + old.len()].copy_from_slice(root.id.as_bytes());
    host.expect("pull-messages", 200, &[put(2, &message), put(3, &root.tree)].concat());
    loop {
        let request = host.request();
        if request.path.ends_with("confirm-message-received") {
            host.give(200, &[]);
            break;
        }
        let id = String::from_utf8(superlink::get(&request.body, 3).remove(0)).unwrap();
        let all = objects.iter().copied().chain([content, &root]);
        let found = all.into_iter().find(|object| object.id == id).unwrap();
        host.give(200, &object_answer(&found.bytes));
    }
    let request = host.request();
    assert!(request.path.ends_with("push-messages"), "{}", request.path);
    // The ServerApp hears why.
    let error = superlink::get(&superlink::get(&request.body, 2)[0], 3).remove(0);
    let reason = String::from_utf8(superlink::get(&error, 2).remove(0)).unwrap();
    let id = superlink::get(&superlink::get(&request.body, 3)[0], 1).remove(0);
    host.give(200, &[put(3, &id), put(4, b"session")].concat());
    host.expect("push-object", 200, &bytes(&golden["answers"]["stored"]));
    match host.next().unwrap() {
        Step::Over(End::Refused(said)) => assert_eq!(said, reason),
        other => panic!("{other:?}"),
    }
    reason
}

#[test]
fn messages_that_no_node_should_take_are_refused_by_name() {
    let npy = |shape: &str, bytes: usize| {
        let about = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n");
        let head = [b"\x93NUMPY\x01\0", &(about.len() as u16).to_le_bytes()[..]].concat();
        [head, about.into_bytes(), vec![1; bytes]].concat()
    };
    let of_chunk = |chunk: &Object, head: &str| {
        let array = object("Array", &[chunk], head.as_bytes());
        let record = object("ArrayRecord", &[&array], b"{}");
        let content = object("RecordDict", &[&record], b"{}");
        refusal(&content, &[chunk, &array, &record])
    };
    let head = |dtype: &str, ids: &str| {
        format!(
            "{{\"dtype\": \"{dtype}\", \"stype\": \"numpy.ndarray\", \"arraychunk_ids\": {ids}}}"
        )
    };
    let whole = object("ArrayChunk", &[], &npy("(5,)", 5));
    assert!(of_chunk(&whole, &head("float32", "[0]")).contains("not one of bytes"));
    assert!(of_chunk(&whole, &head("uint8", "[1]")).contains("head"));
    assert!(of_chunk(&whole, &head("uint8", "[-1]")).contains("head"));
    assert!(of_chunk(&whole, "").contains("head"));
    // A GiB and more in one chunk, said again and again.
    let large = object("ArrayChunk", &[], &vec![1; 1 << 20]);
    let many = format!("[{}0]", "0, ".repeat(1024));
    assert!(of_chunk(&large, &head("uint8", &many)).contains("larger"));
    for (shape, bytes) in [("(6,)", 5), ("(5, 1)", 5), ("()", 1), ("(99999999999999999999,)", 1)] {
        let chunk = object("ArrayChunk", &[], &npy(shape, bytes));
        assert!(of_chunk(&chunk, &head("uint8", "[0]")).contains("npy"), "{shape}");
    }
    assert!(
        of_chunk(&object("ArrayChunk", &[], b"\x93NUMPY"), &head("uint8", "[0]")).contains("npy")
    );

    let array = object("Array", &[&whole], head("uint8", "[0]").as_bytes());
    let other = object("Array", &[], b"{}");
    let two = object("ArrayRecord", &[&array, &other], b"{}");
    let content = object("RecordDict", &[&two], b"{}");
    let said = refusal(&content, &[&whole, &array, &other, &two]);
    assert!(said.contains("one packed array"), "{said}");
    let config = object("ConfigRecord", &[], &[0xff; 5]);
    let content = object("RecordDict", &[&config], b"{}");
    assert!(refusal(&content, &[&config]).contains("config"));
    let metrics = object("MetricRecord", &[], b"");
    let content = object("RecordDict", &[&metrics], b"{}");
    assert!(refusal(&content, &[&metrics]).contains("neither"));
    let no_dict = object("ArrayRecord", &[], b"{}");
    assert!(refusal(&no_dict, &[]).contains("another kind"));
}
