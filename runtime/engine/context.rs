//! What becomes of a session whose context is full.
//!
//! A conversation can go on without its oldest turns. What is kept is rendered by the template as if
//! nothing else had been said, and computed anew from where it differs: keys know their positions.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::chat::{Message, Prompt};
use crate::error::Result;

use super::{Engine, Session};

/// What becomes of a session whose context is full.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContextPolicy {
    /// More is refused with [`crate::Error::ContextFull`], and an answer ends for
    /// [`super::FinishReason::ContextFull`].
    #[default]
    Error,
    /// The oldest turns of the conversation are dropped until a quarter of the context is free, in
    /// the middle of an answer, too. A turn is a user's message with all that answers it; system
    /// messages at the beginning and the last turn stay. A session that was given no messages has
    /// no turns.
    DropOldest,
}

/// The messages that a session's tokens begin with.
#[derive(Clone)]
pub(super) struct Conversation {
    messages: Vec<Message>,
    context: Map<String, Value>,
    add_generation_prompt: bool,
    /// Messages at the beginning that stay.
    system: usize,
    /// Messages after these that are no longer there.
    dropped: usize,
    /// Tokens of the others.
    pub(super) tokens: usize,
}

impl Conversation {
    /// What `before` has dropped stays away, if it is the same conversation.
    fn new(prompt: &Prompt<'_>, before: Option<&Self>) -> Self {
        let &Prompt { messages, context, add_generation_prompt } = prompt;
        let stays = |message: &&Message| ["system", "developer"].contains(&message.role.as_str());
        let goes_on = |before: &&Self| messages.starts_with(before.past());
        Self {
            messages: messages.to_vec(),
            context: context.clone(),
            add_generation_prompt,
            system: messages.iter().take_while(stays).count(),
            dropped: before.filter(goes_on).map_or(0, |before| before.dropped),
            tokens: 0,
        }
    }

    /// Up to the oldest turn that is there.
    fn past(&self) -> &[Message] {
        &self.messages[..self.system + self.dropped]
    }

    fn ids(&self, engine: &Engine) -> Result<Vec<u32>> {
        let (base, past) = (&engine.base, self.past().len());
        let messages = [&self.messages[..self.system], &self.messages[past..]].concat();
        let (context, add_generation_prompt) = (&self.context, self.add_generation_prompt);
        let prompt = Prompt { messages: &messages, context, add_generation_prompt };
        base.chat_template.tokenize(&prompt, &base.tokenizer)
    }

    /// Its ids, which `more` tokens will follow. Where that would fill the context, oldest turns are
    /// dropped until a quarter is free, or one turn is left.
    fn fit(&mut self, engine: &Engine, more: usize) -> Result<Vec<u32>> {
        let context = engine.context();
        let mut ids = self.ids(engine)?;
        let most = if ids.len() + more < context { context } else { context - context / 4 };
        while ids.len() + more > most
            && let Some(messages) = self.oldest_turn()
        {
            self.dropped += messages;
            ids = self.ids(engine)?;
        }
        self.tokens = ids.len();
        Ok(ids)
    }

    /// Messages of the oldest turn; `None` where it is the last.
    fn oldest_turn(&self) -> Option<usize> {
        let mut rest = self.messages[self.past().len()..].iter().skip(1);
        rest.position(|message| message.role == "user").map(|others| others + 1)
    }
}

impl Session {
    /// What becomes of it when its context is full, from the next messages on. Forks have the same
    /// policy; what [`Engine::restore`] reads has the default.
    pub fn set_context_policy(&mut self, policy: ContextPolicy) {
        self.context_policy = policy;
        self.conversation.take_if(|_| policy == ContextPolicy::Error);
    }

    /// Makes the session hold the messages, rendered by the model's chat template with what else it
    /// is given. What it already holds of them is kept, and what is no longer there for lack of room
    /// stays away.
    ///
    /// Errors: as [`Session::set_messages`].
    pub fn set_prompt(&mut self, prompt: &Prompt<'_>) -> Result<()> {
        let engine = Arc::clone(&self.engine);
        if self.context_policy == ContextPolicy::Error {
            let base = &engine.base;
            return self.set_tokens(&base.chat_template.tokenize(prompt, &base.tokenizer)?);
        }
        let mut conversation = Conversation::new(prompt, self.conversation.as_ref());
        let ids = conversation.fit(&engine, 0)?;
        self.set_tokens(&ids)?;
        self.conversation = Some(conversation);
        Ok(())
    }

    /// Drops the oldest turns of a full context; false where that makes no room.
    pub(super) fn drop_oldest(&mut self) -> Result<bool> {
        let Some(mut conversation) = self.conversation.clone() else { return Ok(false) };
        let engine = Arc::clone(&self.engine);
        let answer = self.tokens[conversation.tokens..].to_vec();
        let ids = [conversation.fit(&engine, answer.len())?, answer].concat();
        let has_room = ids.len() < engine.context();
        if has_room {
            self.set_tokens(&ids)?;
            self.conversation = Some(conversation);
        }
        Ok(has_room)
    }
}
