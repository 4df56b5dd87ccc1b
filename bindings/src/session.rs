//! A conversation or a document in progress.

use std::sync::Arc;

use epiphyte::chat::Prompt;

use crate::adapter::{AdapterChange, AdapterWeight, KvPolicy};
use crate::error::{count, number, path as given};
use crate::held::{Dependent, Held, Slot};
use crate::options::{self, GenerateOptions, Message, PromptOptions};
use crate::{EpiphyteError, Generation};

/// A sequence of tokens over the engine's base. Usable from any thread; a call waits for the one
/// before it, and is refused while an answer is running.
#[derive(uniffi::Object)]
pub struct Session(Arc<Slot>);

impl Session {
    pub(crate) fn new(slot: Arc<Slot>) -> Arc<Self> {
        Arc::new(Self(slot))
    }

    pub(crate) fn slot(&self) -> &Arc<Slot> {
        &self.0
    }

    async fn call<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(&mut epiphyte::Session) -> epiphyte::Result<T> + Send + 'static,
    ) -> Result<T, EpiphyteError> {
        self.0.call(name, |held| Ok(work(&mut held.session)?)).await
    }
}

#[uniffi::export]
impl Session {
    /// Adds text as it stands, without a chat template.
    pub async fn push_text(&self, text: String) -> Result<(), EpiphyteError> {
        self.call("push_text", move |session| session.push_text(&text)).await
    }

    /// Makes the session hold this conversation in the model's own template, ready for an answer.
    /// What it holds of it already is not computed again.
    pub async fn set_messages(&self, messages: Vec<Message>) -> Result<(), EpiphyteError> {
        self.set_prompt(messages, PromptOptions::default()).await
    }

    /// As `set_messages`, with more for the template.
    pub async fn set_prompt(
        &self,
        messages: Vec<Message>,
        options: PromptOptions,
    ) -> Result<(), EpiphyteError> {
        let messages = options::messages(messages)?;
        let context = options::json_object("context_json", options.context_json.as_deref())?;
        let add_generation_prompt = options.add_generation_prompt;
        self.call("set_messages", move |session| {
            let messages = &messages;
            session.set_prompt(&Prompt { messages, context: &context, add_generation_prompt })
        })
        .await
    }

    /// How many tokens the session holds; those of a running answer as they are handed out.
    pub fn token_count(&self) -> i32 {
        number(self.0.token_count())
    }

    /// Everything said so far, as token ids.
    pub async fn tokens(&self) -> Result<Vec<i32>, EpiphyteError> {
        self.call("tokens", |session| {
            Ok(session.tokens().iter().map(|id| id.cast_signed()).collect())
        })
        .await
    }

    /// Adds token ids.
    pub async fn push_tokens(&self, ids: Vec<i32>) -> Result<(), EpiphyteError> {
        let ids = ids.into_iter().map(|id| count("ids", id)).collect::<Result<Vec<u32>, _>>()?;
        self.call("push_tokens", move |session| session.push_tokens(&ids)).await
    }

    /// Forgets everything after the first `len` tokens.
    pub async fn truncate(&self, len: i32) -> Result<(), EpiphyteError> {
        let len = count("len", len)?;
        self.call("truncate", move |session| {
            session.truncate(len);
            Ok(())
        })
        .await
    }

    /// Goes on from what the session holds. What is wrong with the settings is said by the first
    /// `next`.
    pub fn generate(&self, options: GenerateOptions) -> Result<Arc<Generation>, EpiphyteError> {
        Generation::start(Arc::clone(&self.0), options).map(Arc::new)
    }

    /// Changes the adapters: those given, each times its weight, and no others.
    pub async fn set_adapters(
        &self,
        adapters: Vec<AdapterWeight>,
        history: KvPolicy,
    ) -> Result<(), EpiphyteError> {
        let change = AdapterChange { adapters, history };
        let set = move |held: &mut Held| change.to(|change| held.session.set_adapters(change));
        self.0.call("set_adapters", set).await
    }

    /// Its adapters and their weights.
    pub async fn adapters(&self) -> Result<Vec<AdapterWeight>, EpiphyteError> {
        self.call("adapters", |session| {
            let weight = |(id, weight)| AdapterWeight { id, weight };
            Ok(session.adapters().into_iter().map(weight).collect())
        })
        .await
    }

    /// A second session that goes on from the same point; what was computed is shared.
    pub async fn fork(&self) -> Result<Arc<Self>, EpiphyteError> {
        let fork = |held: &mut Held| Ok(Slot::new(held.session.fork(), Arc::clone(&held.lease)));
        let slot = self.0.call("fork", fork).await?;
        Ok(Self::new(slot))
    }

    /// Writes everything to a file that the engine's `restore` reads. Complete or not there at all.
    pub async fn save(&self, path: String) -> Result<(), EpiphyteError> {
        let path = given("path", path)?;
        self.call("save", move |session| session.save(path)).await
    }

    /// Frees what it holds, at once or when the call that is running ends; a running answer ends.
    /// Calls give `Closed` from now on; a second close does nothing.
    pub fn close(&self) {
        self.0.close();
    }
}
