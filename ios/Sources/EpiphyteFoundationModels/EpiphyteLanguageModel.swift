#if canImport(FoundationModels)
    import Epiphyte
    import Foundation
    import FoundationModels

    /// An engine, and what adapters it answers with, as a model of Apple's Foundation Models: `LanguageModelSession(model:)`
    /// takes it. It answers in plain text; tools and guided generation are refused by the framework.
    @available(iOS 27, macOS 27, *)
    public struct EpiphyteLanguageModel: LanguageModel {
        public typealias Executor = EpiphyteExecutor

        /// What a transcript holds beside text: nothing of it is passed over in silence.
        public struct Refused: LocalizedError {
            public var errorDescription: String? { "the model reads text only; leave tools and structured content out" }
        }

        let engine: Engine
        let adapters: [AdapterWeight]

        public init(engine: Engine, adapters: [AdapterWeight] = []) {
            self.engine = engine
            self.adapters = adapters
        }

        public var capabilities: LanguageModelCapabilities { LanguageModelCapabilities([]) }

        public var executorConfiguration: EpiphyteExecutor.Configuration {
            .init(engine: ObjectIdentifier(engine))
        }
    }

    /// Answers one request after another; a conversation that goes on is not computed again.
    @available(iOS 27, macOS 27, *)
    public struct EpiphyteExecutor: LanguageModelExecutor {
        public struct Configuration: Hashable, Sendable {
            let engine: ObjectIdentifier
        }

        private let latest = LatestSession()

        public init(configuration: Configuration) throws {}

        public func prewarm(model: EpiphyteLanguageModel, transcript: Transcript) {}

        public func respond(
            to request: LanguageModelExecutorGenerationRequest, model: EpiphyteLanguageModel,
            streamingInto channel: LanguageModelExecutorGenerationChannel
        ) async throws {
            let session = try await latest.take() ?? model.engine.session()
            try await session.setAdapters(model.adapters)
            try await session.setMessages(request.transcript.messages())
            for try await token in try session.generate(request.generationOptions.epiphyte) where !token.text.isEmpty {
                await channel.send(.response(action: .appendText(token.text, tokenCount: 1)))
            }
            await latest.put(session)
        }
    }

    /// The session of the latest answer, for one request at a time.
    private actor LatestSession {
        private var session: Session?

        func take() -> Session? {
            defer { session = nil }
            return session
        }

        func put(_ session: Session) { self.session = session }
    }

    @available(iOS 27, macOS 27, *)
    extension GenerationOptions {
        var epiphyte: GenerateOptions {
            var options = GenerateOptions()
            options.maxTokens = maximumResponseTokens.map(Int32.init(clamping:)) ?? options.maxTokens
            options.sampling.temperature = Float(temperature ?? 0)
            return options
        }
    }

    @available(iOS 27, macOS 27, *)
    extension Transcript {
        /// The conversation in the roles that a chat template knows.
        func messages() throws -> [Message] {
            try map { entry in
                switch entry {
                case .instructions(let instructions): .system(try instructions.segments.text())
                case .prompt(let prompt): .user(try prompt.segments.text())
                case .response(let response): .assistant(try response.segments.text())
                default: throw EpiphyteLanguageModel.Refused()
                }
            }
        }
    }

    @available(iOS 27, macOS 27, *)
    extension [Transcript.Segment] {
        func text() throws -> String {
            try map { segment in
                guard case .text(let text) = segment else { throw EpiphyteLanguageModel.Refused() }
                return text.content
            }.joined(separator: "\n")
        }
    }
#endif
