//! What Flower's messages are made of: objects, each named by its SHA-256, that name others.
//!
//! An object is `<kind> <names of children, with commas> <length of body>`, a zero byte, the body.
//! A message's child is a record of records, whose children are arrays (in chunks), metrics and
//! config.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use serde::Deserialize;

use super::proto::{FlowerMessage, Item, ItemValue, Metadata, ObjectTree, Record, Scalar};
use super::{Metric, Reply, Value, npy};
use crate::federated::sign::to_hex;
use crate::identity::sha256;

/// Bytes of a chunk at most.
const CHUNK: usize = 5 << 20;
/// Objects of a message, and how deep they lie: far more than one array of 4 GiB has.
const MAX_OBJECTS: usize = 4096;
/// Names of the records and of the array in a reply, as `bindings/flower` has them.
const ARRAYS: &str = "arrays";
const METRICS: &str = "metrics";
const DELTA: &str = "delta";

/// An object's name.
pub(super) fn id_of(bytes: &[u8]) -> String {
    to_hex(&sha256([bytes]))
}

/// The names in a tree, children first, each once; nothing when they are too many or no names.
pub(super) fn names(tree: &ObjectTree) -> Option<Vec<String>> {
    let (mut names, mut known) = (Vec::new(), BTreeSet::new());
    collect(tree, &mut names)?;
    names.retain(|name| known.insert(*name));
    Some(names.into_iter().map(String::from).collect())
}

fn collect<'a>(tree: &'a ObjectTree, names: &mut Vec<&'a str>) -> Option<()> {
    tree.children.iter().try_for_each(|child| collect(child, names))?;
    let name = tree.object_id.as_str();
    names.push(name);
    let is_hash = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
    (is_hash && names.len() <= MAX_OBJECTS).then_some(())
}

/// An object, looked at.
struct View<'a> {
    kind: &'a str,
    children: Vec<&'a str>,
    body: &'a [u8],
}

fn view(bytes: &[u8]) -> Option<View<'_>> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let (head, body) = (std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]);
    let mut parts = head.split(' ');
    let (kind, children, length) = (parts.next()?, parts.next()?, parts.next()?);
    let children = children.split(',').filter(|name| !name.is_empty()).collect();
    let as_said = parts.next().is_none() && length.parse() == Ok(body.len());
    as_said.then_some(View { kind, children, body })
}

/// What a message carries: one array of bytes at most, and config.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Content {
    pub(super) payload: Option<Vec<u8>>,
    pub(super) config: BTreeMap<String, Value>,
}

/// Objects by name, of a message that is here whole.
pub(super) type Objects = BTreeMap<String, Vec<u8>>;

/// Reads what a message carries, an array of so many bytes at most.
///
/// Errors: what about it can't be used, for people.
pub(super) fn content(
    root: &str,
    objects: &Objects,
    max_bytes: usize,
) -> Result<Content, &'static str> {
    let get = |name: &str, kind: &str| {
        let view = objects.get(name).and_then(|bytes| view(bytes));
        view.filter(|view| view.kind == kind).ok_or("an object is missing or of another kind")
    };
    let message = get(root, "Message")?;
    let [records] = message.children[..] else { return Err("a message carries one record") };
    let mut content = Content::default();
    for name in get(records, "RecordDict")?.children {
        let bytes = objects.get(name).and_then(|bytes| view(bytes));
        match bytes.ok_or("a record is missing")? {
            View { kind: "ArrayRecord", children, .. } => {
                let ([array], None) = (&children[..], &content.payload) else {
                    return Err("one packed array a message is taken; this one has several");
                };
                content.payload = Some(array_of(&get(array, "Array")?, objects, max_bytes)?);
            }
            View { kind: "ConfigRecord", body, .. } => content.config.extend(config(body)?),
            _ => return Err("it has a record that is neither arrays nor config"),
        }
    }
    Ok(content)
}

/// An array's body.
#[derive(Deserialize)]
struct ArrayHead {
    dtype: String,
    stype: String,
    arraychunk_ids: Vec<usize>,
}

fn array_of(
    array: &View<'_>,
    objects: &Objects,
    max_bytes: usize,
) -> Result<Vec<u8>, &'static str> {
    let damaged = "the array's head can't be read";
    let head: ArrayHead = serde_json::from_slice(array.body).map_err(|_| damaged)?;
    if head.dtype != "uint8" || head.stype != "numpy.ndarray" {
        return Err("the array is not one of bytes");
    }
    let chunk = |place: usize| {
        let object = array.children.get(place).and_then(|name| objects.get(*name));
        object.and_then(|bytes| view(bytes)).filter(|chunk| chunk.kind == "ArrayChunk")
    };
    let bodies = head.arraychunk_ids.into_iter().map(|place| Some(chunk(place)?.body));
    let bodies = bodies.collect::<Option<Vec<_>>>().ok_or(damaged)?;
    // Chunks that are alike are sent once; said again and again, they would fill the memory.
    if bodies.iter().map(|body| body.len()).sum::<usize>() > max_bytes {
        return Err("the array is larger than this node takes");
    }
    npy::bytes_of(&bodies.concat()).map(<[u8]>::to_vec).ok_or("the array is no npy file of bytes")
}

fn config(body: &[u8]) -> Result<BTreeMap<String, Value>, &'static str> {
    let record = Record::decode(body).map_err(|_| "the config can't be read")?;
    let pair = |item: Item| {
        let value = match item.value.and_then(|value| value.scalar) {
            Some(Scalar::Double(value)) => Value::Real(value),
            Some(Scalar::Sint64(value)) => Value::Whole(value.into()),
            Some(Scalar::Uint64(value)) => Value::Whole(value.into()),
            Some(Scalar::Bool(value)) => Value::Bool(value),
            Some(Scalar::String(value)) => Value::Text(value),
            Some(Scalar::Bytes(_)) | None => Value::Other,
        };
        (item.key, value)
    };
    Ok(record.items.into_iter().map(pair).collect())
}

/// A message as it is sent: what stands for it, its objects (children first), their tree.
pub(super) struct Sendable {
    pub(super) message: FlowerMessage,
    pub(super) tree: ObjectTree,
    pub(super) objects: Vec<(String, Vec<u8>)>,
}

/// Objects as they are made, children first.
#[derive(Default)]
struct Builder {
    objects: Vec<(String, Vec<u8>)>,
}

impl Builder {
    fn add(&mut self, kind: &str, children: &[ObjectTree], body: &[u8]) -> ObjectTree {
        let names: Vec<_> = children.iter().map(|child| child.object_id.as_str()).collect();
        let mut bytes = format!("{kind} {} {}\0", names.join(","), body.len()).into_bytes();
        bytes.extend_from_slice(body);
        let object_id = id_of(&bytes);
        if !self.objects.iter().any(|(name, _)| *name == object_id) {
            self.objects.push((object_id.clone(), bytes));
        }
        ObjectTree { object_id, children: children.to_vec() }
    }

    fn arrays(&mut self, payload: &[u8]) -> ObjectTree {
        let file = npy::file_of(payload);
        let mut chunks: Vec<ObjectTree> = Vec::new();
        let mut places = Vec::new();
        for chunk in file.chunks(CHUNK) {
            let chunk = self.add("ArrayChunk", &[], chunk);
            let known = chunks.iter().position(|other| *other == chunk);
            places.push(known.unwrap_or(chunks.len()).to_string());
            chunks.extend(known.is_none().then_some(chunk));
        }
        // Spaced as Python does, so that the same array has the same name whoever sends it.
        let head = format!(
            "{{\"dtype\": \"uint8\", \"shape\": [{}], \"stype\": \"numpy.ndarray\", \
            \"arraychunk_ids\": [{}]}}",
            payload.len(),
            places.join(", ")
        );
        let array = self.add("Array", &chunks, head.as_bytes());
        self.named("ArrayRecord", vec![(DELTA, array)])
    }

    /// A record of children by name.
    fn named(&mut self, kind: &str, children: Vec<(&str, ObjectTree)>) -> ObjectTree {
        let name =
            |(name, tree): &(&str, ObjectTree)| format!("\"{name}\": \"{}\"", tree.object_id);
        let body = format!("{{{}}}", children.iter().map(name).collect::<Vec<_>>().join(", "));
        let trees: Vec<_> = children.into_iter().map(|(_, tree)| tree).collect();
        self.add(kind, &trees, body.as_bytes())
    }

    fn metrics(&mut self, metrics: &[(&str, Metric)]) -> ObjectTree {
        let item = |(key, metric): &(&str, Metric)| {
            let scalar = match metric {
                Metric::Count(count) => Scalar::Sint64(i64::try_from(*count).unwrap_or(i64::MAX)),
                Metric::Real(value) => Scalar::Double(*value),
            };
            Item { key: (*key).into(), value: Some(ItemValue { scalar: Some(scalar) }) }
        };
        let record = Record { items: metrics.iter().map(item).collect() };
        self.add("MetricRecord", &[], &record.encode_to_vec())
    }
}

/// A reply, whose metadata says all but its name.
pub(super) fn sendable(mut message: FlowerMessage, reply: Option<&Reply<'_>>) -> Sendable {
    let mut builder = Builder::default();
    let content = reply.map(|reply| {
        let arrays = reply.payload.map(|payload| (ARRAYS, builder.arrays(payload)));
        let metrics = (METRICS, builder.metrics(reply.metrics));
        builder.named("RecordDict", arrays.into_iter().chain([metrics]).collect())
    });
    let children: Vec<_> = content.into_iter().collect();
    let tree = builder.add("Message", &children, &message.encode_to_vec());
    let metadata = message.metadata.get_or_insert_with(Metadata::default);
    metadata.message_id.clone_from(&tree.object_id);
    message.content = reply.is_some().then_some(());
    Sendable { message, tree, objects: builder.objects }
}
