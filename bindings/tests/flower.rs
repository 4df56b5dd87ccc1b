//! A node of Flower across the border, with the answers that flwr gives.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use base64ct::{Base64, Encoding};
use epiphyte_bindings::{
    EpiphyteError, FlowerAnswer, FlowerClient, FlowerEnd, FlowerLeave, FlowerMetric, FlowerOptions,
    FlowerReply, FlowerRequest, FlowerStep, FlowerTask, FlowerValue, KeyKind, PublicKey,
    SigningCallback, SigningKey,
};
use pollster::block_on;

use super::golden;

/// Four seconds before the message was made.
const NOW: i64 = 1_795_918_710_000;

const OPTIONS: FlowerOptions = FlowerOptions {
    heartbeat_seconds: 60,
    poll_seconds: 3,
    patience_seconds: Some(600),
    max_bytes: 1 << 30,
};

/// Signs, or throws.
struct Store(Arc<SigningKey>, Option<EpiphyteError>);

impl SigningCallback for Store {
    fn public_key(&self) -> Result<PublicKey, EpiphyteError> {
        Ok(self.0.public_key())
    }

    fn sign(&self, message: Vec<u8>) -> Result<Vec<u8>, EpiphyteError> {
        self.1.clone().map_or_else(|| self.0.sign(message), Err)
    }
}

fn open(
    key: &Arc<SigningKey>,
    saved: Option<Vec<u8>>,
    options: FlowerOptions,
) -> Result<Arc<FlowerClient>, EpiphyteError> {
    block_on(FlowerClient::open(Arc::new(Store(Arc::clone(key), None)), saved, options))
}

fn key() -> Arc<SigningKey> {
    SigningKey::generate(KeyKind::P256).unwrap()
}

/// Answers by call, in the order in which they are asked for.
struct Recorded(HashMap<String, VecDeque<Vec<u8>>>);

impl Recorded {
    fn new() -> Self {
        let mut answers = HashMap::<_, VecDeque<_>>::new();
        for line in std::fs::read_to_string(golden("flower_round.txt")).unwrap().lines() {
            let (call, body) = line.split_once(' ').unwrap();
            answers.entry(call.into()).or_default().push_back(Base64::decode_vec(body).unwrap());
        }
        Self(answers)
    }

    fn answer(&mut self, request: &FlowerRequest) -> FlowerAnswer {
        assert!(request.headers.contains_key("flwr-signature"));
        let recorded = self.0.get_mut(request.path.rsplit('/').next().unwrap());
        let body = match request.path.as_str() {
            "/v1/fleet/push-messages" => wants_all(&request.body),
            "/v1/fleet/push-object" => recorded.unwrap()[0].clone(),
            _ => recorded.and_then(VecDeque::pop_front).unwrap_or_default(),
        };
        FlowerAnswer { status: 200, date: None, body }
    }
}

/// The answer that asks for every object that is named.
fn wants_all(body: &[u8]) -> Vec<u8> {
    let names = body.split(|byte| !byte.is_ascii_hexdigit()).filter(|name| name.len() == 64);
    let wanted = names.flat_map(|name| [&[3 << 3 | 2, 64], name].concat());
    wanted.chain([4 << 3 | 2, 1, b's']).collect()
}

/// The next step that is neither saving nor sending, and what was saved last.
fn next(client: &Arc<FlowerClient>, link: &mut Recorded) -> (FlowerStep, Option<Vec<u8>>) {
    let mut saved = None;
    loop {
        match block_on(Arc::clone(client).poll(NOW)).unwrap() {
            FlowerStep::Save { state } => saved = Some(state),
            FlowerStep::Send { request } => {
                let answer = Some(link.answer(&request));
                block_on(Arc::clone(client).answer(NOW, answer)).unwrap();
            }
            step => return (step, saved),
        }
    }
}

fn task(step: FlowerStep) -> FlowerTask {
    match step {
        FlowerStep::Work { task } => task,
        _ => panic!("no work"),
    }
}

#[test]
fn a_round_goes_through_also_after_a_restart() {
    let (key, mut link) = (key(), Recorded::new());
    let client = open(&key, None, OPTIONS).unwrap();
    let (step, saved) = next(&client, &mut link);
    let asked = task(step);
    assert_eq!((asked.kind.as_str(), asked.run.as_str(), asked.round), ("train", "77", Some(1)));
    assert_eq!(asked.config["server-round"], FlowerValue::Whole { value: 1 });
    assert_eq!(asked.payload, std::fs::read(golden("delta/tiny.version")).ok());
    assert!(matches!(next(&client, &mut link).0, FlowerStep::Wait { millis: 1.. }));

    // Another process: a heartbeat brings it back, and the same task comes again.
    link.0.insert("send-node-heartbeat".into(), [vec![1 << 3, 1]].into());
    let client = open(&key, saved, OPTIONS).unwrap();
    assert!(task(next(&client, &mut link).0) == asked);
    let metrics = [
        ("num-examples".into(), FlowerMetric::Count { value: 5 }),
        ("loss".into(), FlowerMetric::Real { value: 0.5 }),
    ];
    let reply = FlowerReply::Done { payload: Some(vec![1, 2, 3]), metrics: metrics.into() };
    block_on(Arc::clone(&client).reply(NOW, reply)).unwrap();
    let end = next(&client, &mut link).0;
    assert!(end == FlowerStep::Over { end: FlowerEnd::Delivered });
    block_on(Arc::clone(&client).leave(FlowerLeave::Offline)).unwrap();
    assert!(next(&client, &mut link).0 == FlowerStep::Left);
    let status = block_on(Arc::clone(&client).status()).unwrap();
    assert_eq!((status.node_id.as_deref(), status.trouble), (Some("18364758544493064720"), None));
    assert!(status.requests > 5 && status.sent_bytes > 0 && status.received_bytes > 0);
}

#[test]
fn what_keeps_a_node_from_going_on_is_told() {
    let key = key();
    let refused = open(&key, None, FlowerOptions { heartbeat_seconds: 5, ..OPTIONS }).err();
    assert!(
        matches!(&refused, Some(EpiphyteError::InvalidArgument { name, .. }) if name == "heartbeat")
    );
    let ed25519 = SigningKey::generate(KeyKind::Ed25519).unwrap();
    let refused = open(&ed25519, None, OPTIONS).err();
    assert!(matches!(&refused, Some(EpiphyteError::InvalidArgument { name, .. }) if name == "key"));
    let damaged = open(&key, Some(vec![7]), OPTIONS).err();
    assert!(matches!(damaged, Some(EpiphyteError::InvalidDelta { .. })), "{damaged:?}");

    let thrown = EpiphyteError::Callback { text: "locked".into(), hint: "wait".into() };
    let store = Arc::new(Store(Arc::clone(&key), Some(thrown.clone())));
    let locked = block_on(FlowerClient::open(store, None, OPTIONS)).unwrap();
    assert_eq!(block_on(locked.poll(NOW)).err(), Some(thrown));

    let client = open(&key, None, OPTIONS).unwrap();
    let reply = FlowerReply::Refused { reason: "no".into() };
    let idle = block_on(Arc::clone(&client).reply(NOW, reply)).err();
    assert!(matches!(&idle, Some(EpiphyteError::InvalidArgument { name, .. }) if name == "reply"));
    // No Fleet API there.
    assert!(matches!(block_on(Arc::clone(&client).poll(NOW)), Ok(FlowerStep::Send { .. })));
    let answer = FlowerAnswer { status: 404, date: None, body: Vec::new() };
    block_on(Arc::clone(&client).answer(NOW, Some(answer))).unwrap();
    match block_on(client.poll(NOW)).err() {
        Some(EpiphyteError::SuperLink { call, .. }) => assert_eq!(call, "register-node"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_answer_is_borne_and_told() {
    let client = open(&key(), None, OPTIONS).unwrap();
    assert!(matches!(block_on(Arc::clone(&client).poll(NOW)), Ok(FlowerStep::Send { .. })));
    block_on(Arc::clone(&client).answer(NOW, None)).unwrap();
    let step = block_on(Arc::clone(&client).poll(NOW)).unwrap();
    assert!(matches!(step, FlowerStep::Wait { millis: 1.. }));
    assert!(block_on(client.status()).unwrap().trouble.unwrap().contains("no answer"));
}
