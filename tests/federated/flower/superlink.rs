//! A SuperLink as small as it can be: one node, one message; and the protobuf it takes.

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::common::golden;

pub(super) fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap().as_bytes();
    text.chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// What flwr itself writes.
pub(super) fn written() -> Value {
    serde_json::from_slice(&std::fs::read(golden("flower.json")).unwrap()).unwrap()
}

/// A field of bytes.
pub(super) fn put(field: u8, value: &[u8]) -> Vec<u8> {
    let mut length = value.len();
    let mut out = vec![field << 3 | 2];
    while length > 127 {
        out.push(length as u8 | 128);
        length >>= 7;
    }
    out.push(length as u8);
    [&out, value].concat()
}

/// All fields of bytes with a number.
pub(super) fn get(mut message: &[u8], wanted: u64) -> Vec<Vec<u8>> {
    let varint = |message: &mut &[u8]| {
        let (mut value, mut shift) = (0, 0);
        while let Some((byte, rest)) = message.split_first() {
            *message = rest;
            value |= u64::from(byte & 127) << shift;
            shift += 7;
            if byte & 128 == 0 {
                break;
            }
        }
        value
    };
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        match key & 7 {
            0 => drop(varint(&mut message)),
            1 => message = &message[8..],
            _ => {
                let length = varint(&mut message) as usize;
                let (value, rest) = message.split_at(length);
                found.extend((key >> 3 == wanted).then(|| value.to_vec()));
                message = rest;
            }
        }
    }
    found
}

/// Names of a tree, children first.
fn names(tree: &[u8], found: &mut Vec<String>) {
    get(tree, 2).iter().for_each(|child| names(child, found));
    found.push(String::from_utf8(get(tree, 1).remove(0)).unwrap());
}

/// An object as Flower has it, and its tree.
#[derive(Clone)]
pub(super) struct Object {
    pub(super) bytes: Vec<u8>,
    pub(super) tree: Vec<u8>,
    pub(super) id: String,
}

pub(super) fn object(kind: &str, children: &[&Object], body: &[u8]) -> Object {
    let names: Vec<_> = children.iter().map(|child| child.id.as_str()).collect();
    let head = format!("{kind} {} {}\0", names.join(","), body.len());
    let bytes = [head.as_bytes(), body].concat();
    let id: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let trees: Vec<_> = children.iter().flat_map(|child| put(2, &child.tree)).collect();
    Object { bytes, tree: [put(1, id.as_bytes()), trees].concat(), id }
}

/// The answer to a pull of an object.
pub(super) fn object_answer(content: &[u8]) -> Vec<u8> {
    [&[1 << 3, 1, 2 << 3, 1][..], &put(3, content)].concat()
}

/// What the SuperLink knows.
pub(super) struct SuperLink {
    golden: Value,
    pub(super) is_registered: bool,
    pub(super) is_online: bool,
    /// The message was given out, and whether its objects are still there.
    pub(super) is_given: bool,
    is_confirmed: bool,
    objects: BTreeMap<String, Vec<u8>>,
    /// Objects of a reply that are wanted, and those that came.
    wanted: Vec<String>,
    pub(super) reply: BTreeMap<String, Vec<u8>>,
    pub(super) is_replied: bool,
    /// Whether a `ServerApp` fetches a reply as soon as it is announced, and whether it did.
    pub(super) fetches: bool,
    is_fetched: bool,
    /// That a `ServerApp` saw the node offline while it waited for a reply.
    pub(super) gave_up: bool,
}

impl SuperLink {
    pub(super) fn new() -> Self {
        let golden = written();
        let requests = golden["requests"]["pull-object"].as_array().unwrap().iter();
        let ids = requests.map(|r| String::from_utf8(get(&bytes(r), 3).remove(0)).unwrap());
        let contents = golden["answers"]["objects"].as_array().unwrap().iter().map(bytes);
        Self {
            is_registered: false,
            is_online: false,
            is_given: false,
            is_confirmed: false,
            objects: ids.zip(contents).collect(),
            wanted: Vec::new(),
            reply: BTreeMap::new(),
            is_replied: false,
            fetches: false,
            is_fetched: false,
            gave_up: false,
            golden,
        }
    }

    fn say(&self, name: &str) -> (u16, Vec<u8>) {
        (200, bytes(&self.golden["answers"][name]))
    }

    fn unmet(code: u32) -> (u16, Vec<u8>) {
        (412, format!("{{\"code\": {code}, \"detail\": \"no\"}}").into_bytes())
    }

    /// As the one of flwr answers.
    pub(super) fn answer(&mut self, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let text = |field| String::from_utf8(get(body, field).remove(0)).unwrap();
        match path.rsplit('/').next().unwrap() {
            "register-node" if std::mem::replace(&mut self.is_registered, true) => Self::unmet(23),
            "register-node" => self.say("node"),
            "activate-node" if std::mem::replace(&mut self.is_online, true) => Self::unmet(2004),
            "activate-node" => self.say("node"),
            "send-node-heartbeat" => {
                self.is_online = true;
                self.say("alive")
            }
            "deactivate-node" => {
                self.gave_up |= self.is_given && !self.is_replied;
                match std::mem::replace(&mut self.is_online, false) {
                    true => (200, Vec::new()),
                    false => Self::unmet(2005),
                }
            }
            "pull-messages" if std::mem::replace(&mut self.is_given, true) => {
                self.say("no_message")
            }
            "pull-messages" => self.say("message"),
            "pull-object" if self.is_confirmed => self.say("object_gone"),
            "pull-object" => (200, self.objects[&text(3)].clone()),
            "confirm-message-received" => {
                self.is_confirmed = true;
                (200, Vec::new())
            }
            // Whoever fetched the reply has taken the message it replies to away.
            "push-messages" if self.is_fetched => (200, put(4, b"another")),
            "push-messages" => {
                self.is_fetched = self.fetches;
                let mut all = Vec::new();
                names(&get(body, 3)[0], &mut all);
                all.retain(|id| !self.reply.contains_key(id));
                self.wanted = all;
                let wanted = self.wanted.iter().flat_map(|id| put(3, id.as_bytes()));
                (200, wanted.chain(put(4, b"session")).collect())
            }
            "push-object" => {
                let (id, session) = (text(3), get(body, 5).pop());
                let is_open = session.is_none_or(|session| session == b"session");
                if !is_open || !self.wanted.contains(&id) {
                    return self.say("not_stored");
                }
                self.wanted.retain(|other| *other != id);
                self.reply.insert(id, get(body, 4).remove(0));
                self.is_replied = self.wanted.is_empty();
                self.say("stored")
            }
            other => panic!("{other}"),
        }
    }
}
