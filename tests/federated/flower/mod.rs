//! The node of Flower without a network: byte for byte against what flwr writes, and with a server
//! that answers anything or nothing.

mod hostile;
mod rejoin;
mod superlink;

use std::time::Duration;

use epiphyte::Error;
use epiphyte::federated::flower::{
    Answer, Client, End, Leave, Metric, Options, Reply, Request, Step, Task, Value,
};
use epiphyte::federated::{PublicKey, Signer, SigningKey};

use super::key;
use superlink::{SuperLink, bytes, written};

/// Of tests/golden/flower.py.
const ASKED: f64 = 1_795_918_714.25;
const REPLIED: f64 = 1_795_918_720.5;

/// Whoever carries out the steps.
struct Host {
    client: Client,
    key: SigningKey,
    now: Duration,
    saved: Option<Vec<u8>>,
    /// What was waited for.
    waited: Duration,
}

impl Host {
    fn new() -> Self {
        let key = key(7);
        let client = Client::new(&key.public_key(), None, Options::default()).unwrap();
        let now = Duration::from_secs_f64(ASKED - 60.0);
        Self { client, key, now, saved: None, waited: Duration::ZERO }
    }

    /// The process is killed; another one goes on with what was saved.
    fn restart(&mut self) {
        let saved = self.saved.as_deref();
        self.client = Client::new(&self.key.public_key(), saved, Options::default()).unwrap();
    }

    /// The next step that is neither saving nor waiting.
    fn next(&mut self) -> Result<Step, Error> {
        loop {
            match self.client.poll(self.now, &self.key)? {
                Step::Save(bytes) => self.saved = Some(bytes),
                Step::Wait(time) => {
                    assert!(!time.is_zero());
                    self.now += time;
                    self.waited += time;
                }
                step => return Ok(step),
            }
        }
    }

    fn request(&mut self) -> Request {
        match self.next().unwrap() {
            Step::Send(request) => request,
            other => panic!("{other:?}"),
        }
    }

    fn task(&mut self) -> Task {
        match self.next().unwrap() {
            Step::Work(task) => task,
            other => panic!("{other:?}"),
        }
    }

    fn give(&mut self, status: u16, body: &[u8]) {
        self.client.answer(self.now, Answer::Http { status, date: None, body });
    }

    /// Expects a request and answers it.
    fn expect(&mut self, name: &str, status: u16, body: &[u8]) -> Request {
        let request = self.request();
        assert_eq!(request.path, format!("/v1/fleet/{name}"));
        self.give(status, body);
        request
    }

    fn reply(&mut self) {
        let payload: Vec<u8> = (0..3000_u32).map(|i| (7 * i) as u8).collect();
        let metrics = [
            ("num-examples", Metric::Count(12)),
            ("loss", Metric::Real(0.25)),
            ("norm", Metric::Real(1.5)),
        ];
        let reply = Reply { payload: Some(&payload), metrics: &metrics };
        self.client.reply(self.now, &reply).unwrap();
    }

    /// Carries out the next step with a SuperLink.
    fn with(&mut self, link: &mut SuperLink) -> Step {
        let step = self.next().unwrap();
        match &step {
            Step::Send(request) => {
                let (status, body) = link.answer(request.path, &request.body);
                self.give(status, &body);
            }
            Step::Work(_) => self.reply(),
            _ => {}
        }
        step
    }

    /// Until there is work.
    fn until_work(&mut self, link: &mut SuperLink) -> Task {
        loop {
            match self.next().unwrap() {
                Step::Send(request) => {
                    let (status, body) = link.answer(request.path, &request.body);
                    self.give(status, &body);
                }
                Step::Work(task) => return task,
                other => panic!("{other:?}"),
            }
        }
    }

    /// Until the task is over, or the SuperLink has given it up and the node is back.
    fn finish(&mut self, link: &mut SuperLink) -> Option<End> {
        for _ in 0..60 {
            if let Step::Over(end) = self.with(link) {
                return Some(end);
            }
            if link.gave_up && link.is_online {
                return None;
            }
        }
        panic!("it takes too long");
    }
}

#[test]
fn every_request_is_the_one_that_flwr_writes() {
    let golden = written();
    let (requests, answers) = (&golden["requests"], &golden["answers"]);
    let mut host = Host::new();
    let expect = |host: &mut Host, name: &str, wanted: &serde_json::Value, answer: &[u8]| {
        let request = host.expect(name, 200, answer);
        assert_eq!(request.body, bytes(wanted), "{name}");
        request
    };
    let node = bytes(&answers["node"]);
    let request = expect(&mut host, "register-node", &requests["register-node"], &node);
    check_headers(&request, &golden, &host.key.public_key());
    expect(&mut host, "activate-node", &requests["activate-node"], &node);
    assert_eq!(host.client.node_id(), Some(golden["node_id"].as_str().unwrap().parse().unwrap()));
    let pull = &requests["pull-messages"];
    expect(&mut host, "pull-messages", pull, &bytes(&answers["no_message"]));
    host.now += Duration::from_secs(48);
    let alive = bytes(&answers["alive"]);
    expect(&mut host, "send-node-heartbeat", &requests["send-node-heartbeat"], &alive);
    expect(&mut host, "pull-messages", pull, &bytes(&answers["message"]));
    let objects = requests["pull-object"].as_array().unwrap().iter();
    for (request, answer) in objects.zip(answers["objects"].as_array().unwrap()) {
        expect(&mut host, "pull-object", request, &bytes(answer));
    }
    expect(&mut host, "confirm-message-received", &requests["confirm-message-received"], &[]);

    host.now = Duration::from_secs_f64(REPLIED - 6.0);
    let task = host.task();
    assert_eq!((task.kind.as_str(), task.run, task.round()), ("train", 77, Some(3)));
    assert_eq!(task.payload.unwrap(), (0..1000_u32).map(|i| i as u8).collect::<Vec<_>>());
    let config = [
        ("lr", Value::Real(0.5)),
        ("note", Value::Text("now".into())),
        ("on", Value::Bool(true)),
        ("server-round", Value::Whole(3)),
    ];
    assert_eq!(task.config, config.map(|(key, value)| (key.to_string(), value)).into());
    host.now = Duration::from_secs_f64(REPLIED);
    host.reply();
    let accepted = bytes(&answers["accepted"]);
    expect(&mut host, "push-messages", &requests["push-messages"], &accepted);
    for request in requests["push-object"].as_array().unwrap() {
        expect(&mut host, "push-object", request, &bytes(&answers["stored"]));
    }
    assert!(matches!(host.next().unwrap(), Step::Over(End::Delivered)));

    // The reply is fetched first: whoever has it deletes it.
    host.client.leave(Leave::Offline);
    host.waited = Duration::ZERO;
    let pushed = bytes(requests["push-object"].as_array().unwrap().last().unwrap());
    for answer in [superlink::object_answer(b"a reply"), bytes(&answers["object_gone"])] {
        let request = host.expect("pull-object", 200, &answer);
        assert_eq!(superlink::get(&request.body, 3), superlink::get(&pushed, 3));
    }
    expect(&mut host, "deactivate-node", &requests["deactivate-node"], &[]);
    assert_eq!(host.waited, Duration::from_secs(3));
    assert!(matches!(host.next().unwrap(), Step::Left));
    let traffic = host.client.traffic();
    assert_eq!(traffic.requests, 5 + 6 + 1 + 1 + 6 + 2 + 1);
    assert!(traffic.sent_bytes > 3000 && traffic.received_bytes > 1000, "{traffic:?}");
}

fn check_headers(request: &Request, golden: &serde_json::Value, key: &PublicKey) {
    let header = |name: &str| {
        let found = request.headers.iter().find(|(key, _)| *key == name);
        found.unwrap_or_else(|| panic!("{name}")).1.as_str()
    };
    assert_eq!(header("content-type"), "application/protobuf");
    let decoded = |text: &str| -> Vec<u8> {
        let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let digit = |byte: u8| digits.iter().position(|d| *d == byte).unwrap() as u32;
        let text = text.trim_end_matches('=').as_bytes();
        let chunk = |chunk: &[u8]| {
            let bits = chunk.iter().fold(0, |bits, byte| bits << 6 | digit(*byte));
            (bits << (6 * (4 - chunk.len()))).to_be_bytes()[1..chunk.len()].to_vec()
        };
        text.chunks(4).flat_map(chunk).collect()
    };
    let pem = golden["public_key"].as_str().unwrap();
    assert_eq!(decoded(header("flwr-public-key")), pem.as_bytes());
    assert_eq!(header("flwr-timestamp"), "2026-11-29T02:17:34.250000+00:00");
    let signature = decoded(header("flwr-signature"));
    key.verify(header("flwr-timestamp").as_bytes(), &signature).unwrap();
    assert_eq!(key.to_pem().unwrap(), pem);
    assert_eq!(key.to_openssh(), golden["openssh"].as_str().unwrap());
    assert_eq!(PublicKey::from_pem(pem).unwrap(), *key);
}

#[test]
fn a_node_that_can_not_be_is_refused_by_name() {
    let of = |number, options| {
        let made = Client::new(&key(number).public_key(), None, options);
        made.map(drop).unwrap_err().to_string()
    };
    assert!(of(2, Options::default()).contains("P-256"));
    for seconds in [0, 9, 1801] {
        let heartbeat = Duration::from_secs(seconds);
        assert!(of(7, Options { heartbeat, ..Options::default() }).contains("10 to 1800"));
    }
    let mut host = Host::new();
    let reply = Reply { payload: None, metrics: &[] };
    let e = host.client.reply(host.now, &reply).unwrap_err();
    assert!(e.to_string().contains("no task"), "{e}");
    host.client.refuse(host.now, "no").unwrap_err();
}
