//! Killed anywhere and started again: nothing that was learnt is lost, and nobody waits for ever.

use super::*;

/// Kills the node at step `at` of a round: before what it asks is done, or after it was and before
/// the answer. The SuperLink, what became of the task, and the largest object of the reply; nothing
/// once the round has fewer steps.
fn killed(at: usize, is_heard: bool, fetches: bool) -> Option<(SuperLink, Option<End>, Vec<u8>)> {
    let (mut host, mut link) = (Host::new(), SuperLink::new());
    link.fetches = fetches;
    for _ in 0..at {
        if let Step::Over(_) = host.with(&mut link) {
            return None;
        }
    }
    match host.next().unwrap() {
        Step::Send(request) if is_heard => drop(link.answer(request.path, &request.body)),
        Step::Over(_) => return None,
        _ => {}
    }
    host.restart();
    host.waited = Duration::ZERO;
    let end = host.finish(&mut link);
    if end.is_none() {
        assert!(host.waited >= Duration::from_secs(10), "long enough to be seen");
    }
    let largest = link.reply.values().max_by_key(|object| object.len()).cloned();
    Some((link, end, largest.unwrap_or_default()))
}

#[test]
fn a_round_survives_a_kill_at_every_step_but_one() {
    // Whether the reply is fetched once it is whole, or from its announcement on.
    for fetches in [false, true] {
        let (_, _, whole) = killed(0, false, fetches).unwrap();
        assert!(whole.len() > 3000);
        let (mut lost, mut steps) = (Vec::new(), 0);
        for (at, is_heard) in (0..).flat_map(|at| [(at, false), (at, true)]) {
            let Some((link, end, largest)) = killed(at, is_heard, fetches) else { break };
            steps += 1;
            match end {
                Some(end) => {
                    assert_eq!(end, End::Delivered, "step {at}, {is_heard}, {fetches}");
                    let is_whole = link.is_replied && largest == whole;
                    assert!(is_whole, "step {at}, {is_heard}, {fetches}");
                }
                None => lost.push((at, is_heard)),
            }
        }
        // Register, activate, pull, six objects, confirm, work, push, six objects: twice each.
        assert_eq!(steps, 2 * 18);
        // The answer that brought the message: the SuperLink gives it out once.
        assert_eq!(lost, [(2, true)]);
    }
}

#[test]
fn who_left_comes_back_at_once() {
    for how in [Leave::Offline, Leave::Online] {
        let (mut host, mut link) = (Host::new(), SuperLink::new());
        assert_eq!(host.finish(&mut link), Some(End::Delivered));
        host.client.leave(how);
        while !matches!(host.with(&mut link), Step::Left) {}
        assert_eq!(link.is_online, how == Leave::Online);
        host.restart();
        host.waited = Duration::ZERO;
        let alive = bytes(&written()["answers"]["alive"]);
        host.expect("send-node-heartbeat", 200, &alive);
        assert_eq!((host.request().path, host.waited), ("/v1/fleet/pull-messages", Duration::ZERO));
    }
}

/// Requests and answers in turn.
fn goes(host: &mut Host, turns: &[(&str, &[u8])]) {
    for (name, answer) in turns {
        host.expect(name, 200, answer);
    }
}

#[test]
fn a_message_that_came_meanwhile_is_not_given_up() {
    let answers = written()["answers"].clone();
    let [alive, none, message] =
        ["alive", "no_message", "message"].map(|name| bytes(&answers[name]));
    let (there, gone) = (superlink::object_answer(b"a reply"), bytes(&answers["object_gone"]));
    // Killed while it waited for work, or an answer was lost: whether there was a message in it,
    // nobody knows. The next one says that there was none.
    for is_killed in [true, false] {
        let (mut host, node) = (Host::new(), bytes(&answers["node"]));
        goes(&mut host, &[("register-node", &node), ("activate-node", &node)]);
        assert_eq!(host.request().path, "/v1/fleet/pull-messages");
        if is_killed {
            host.restart();
            host.expect("send-node-heartbeat", 200, &alive);
        }
        goes(&mut host, &[("pull-messages", &message)]);
        assert!(host.request().path.ends_with("pull-object"));
    }
    // Nor is a reply that nobody has fetched yet.
    let (mut host, mut link) = (Host::new(), SuperLink::new());
    assert_eq!(host.finish(&mut link), Some(End::Delivered));
    host.expect("pull-messages", 200, &none);
    host.restart();
    goes(&mut host, &[("send-node-heartbeat", &alive), ("pull-messages", &none)]);
    goes(&mut host, &[("pull-object", &there), ("pull-messages", &none), ("pull-object", &gone)]);
    // A message may have come before it was fetched, and none has: now nobody waits but for what
    // was lost.
    goes(&mut host, &[("pull-messages", &none), ("deactivate-node", &[])]);
    host.waited = Duration::ZERO;
    goes(&mut host, &[("send-node-heartbeat", &alive), ("pull-messages", &none)]);
    assert_eq!(host.waited, Duration::from_secs(30));
    host.expect("pull-messages", 200, &message);
    // A run that is over fetches nothing; nor does anybody after a while.
    for answer in [None, Some(there)] {
        let (mut host, mut link) = (Host::new(), SuperLink::new());
        assert_eq!(host.finish(&mut link), Some(End::Delivered));
        host.client.leave(Leave::Offline);
        host.waited = Duration::ZERO;
        let mut asked = 0;
        while let Step::Send(request) = host.next().unwrap() {
            match (request.path, &answer) {
                ("/v1/fleet/deactivate-node", _) => host.give(200, &[]),
                ("/v1/fleet/send-node-heartbeat", _) => host.give(200, &alive),
                (_, None) => host.give(403, b"{\"code\": 2007}"),
                (_, Some(there)) => host.give(200, there),
            }
            asked += usize::from(request.path.ends_with("pull-object"));
        }
        assert!(host.waited <= Duration::from_secs(203), "{:?}", host.waited);
        assert_eq!(asked, if answer.is_some() { 67 } else { 1 });
    }
}

#[test]
fn a_task_waits_for_who_left_without_a_word() {
    let (mut host, mut link) = (Host::new(), SuperLink::new());
    let task = host.until_work(&mut link);
    host.client.leave(Leave::Online);
    assert!(matches!(host.next().unwrap(), Step::Left));
    host.restart();
    host.expect("send-node-heartbeat", 200, &bytes(&written()["answers"]["alive"]));
    host.expect("confirm-message-received", 200, &[]);
    assert_eq!(host.task(), task);
    // Offline instead: the ServerApp hears of it, and the task is no more.
    host.client.leave(Leave::Offline);
    host.expect("deactivate-node", 200, &[]);
    assert!(matches!(host.next().unwrap(), Step::Left));
    host.restart();
    host.expect("send-node-heartbeat", 200, &bytes(&written()["answers"]["alive"]));
    host.expect("pull-messages", 200, &[]);
}

#[test]
fn a_state_that_was_lost_waits_for_the_heartbeat_to_lapse() {
    let (mut host, mut link) = (Host::new(), SuperLink::new());
    assert_eq!(host.finish(&mut link), Some(End::Delivered));
    host.saved = None;
    host.restart();
    host.expect("register-node", 412, b"{\"code\": 23}");
    for _ in 0..3 {
        host.expect("activate-node", 412, b"{\"code\": 2004}");
    }
    assert!(host.client.trouble().unwrap().contains("counts as online"));
    host.expect("activate-node", 200, &bytes(&written()["answers"]["node"]));
    host.expect("pull-messages", 200, &[]);
    assert_eq!(host.client.trouble(), None);
}

#[test]
fn a_state_of_another_key_or_a_damaged_one_is_refused() {
    let (mut host, mut link) = (Host::new(), SuperLink::new());
    host.until_work(&mut link);
    let saved = host.saved.clone().unwrap();
    let read = |saved: &[u8], number| {
        Client::new(&key(number).public_key(), Some(saved), Options::default()).map(drop)
    };
    read(&saved, 7).unwrap();
    let other = read(&saved, 9).unwrap_err().to_string();
    assert!(other.contains("of key p256:"), "{other}");
    assert!(read(b"", 7).unwrap_err().to_string().contains("no `epiphyte.flower_node.1`"));
    let mut refused = 0;
    for at in 0..saved.len() {
        let mut changed = saved.clone();
        changed[at] ^= 0x55;
        // Never a panic; what is hashed is never taken.
        refused += usize::from(read(&changed, 7).is_err());
        let _ = read(&saved[..at], 7);
    }
    assert!(refused > saved.len() / 2, "{refused} of {}", saved.len());
}
