import EpiphyteCore
import Foundation

/// A conversation or a document in progress over an engine's base. Usable from any thread: a call waits for the one before
/// it, and throws `busy` while an answer is running. What it holds is freed with it, or by `close()`.
public final class Session: Sendable {
    let core: EpiphyteCore.Session
    /// Stays open with it.
    private let engine: Engine

    init(_ core: EpiphyteCore.Session, of engine: Engine) {
        self.core = core
        self.engine = engine
    }

    /// Makes the session hold this conversation in the model's own template, ready for an answer. What it holds of it
    /// already is not computed again.
    public func setMessages(_ messages: [Message], options: PromptOptions = PromptOptions()) async throws {
        try await core.setPrompt(messages: messages, options: options)
    }

    /// Adds text as it stands, without a chat template.
    public func pushText(_ text: String) async throws { try await core.pushText(text: text) }

    /// Adds token ids.
    public func pushTokens(_ ids: [Int32]) async throws { try await core.pushTokens(ids: ids) }

    /// Everything said so far, as token ids.
    public func tokens() async throws -> [Int32] { try await core.tokens() }

    /// How many tokens it holds; those of a running answer as they are handed out.
    public var tokenCount: Int { Int(core.tokenCount()) }

    /// Forgets everything after the first `count` tokens.
    public func truncate(_ count: Int) async throws { try await core.truncate(len: Int32(clamping: count)) }

    /// Goes on from what the session holds. What is wrong with the options is thrown by the first token.
    public func generate(_ options: GenerateOptions = GenerateOptions()) throws -> Generation {
        Generation(try core.generate(options: options))
    }

    /// Changes the adapters: those given, each times its weight, and no others.
    public func setAdapters(_ adapters: [AdapterWeight], history: KvPolicy = .recompute) async throws {
        try await core.setAdapters(adapters: adapters, history: history)
    }

    /// Its adapters and their weights.
    public func adapters() async throws -> [AdapterWeight] { try await core.adapters() }

    /// A second session that goes on from the same point; what was computed is shared.
    public func fork() async throws -> Session { Session(try await core.fork(), of: engine) }

    /// Writes everything to a file that `Engine.restore` reads. Complete or not there at all.
    public func save(to file: URL) async throws { try await core.save(path: file.path) }

    /// Frees what it holds; a running answer ends. Calls throw `closed` from now on; a second close does nothing.
    public func close() { core.close() }
}
