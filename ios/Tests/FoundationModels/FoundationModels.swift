// What EpiphyteFoundationModels uses of Apple's framework, in the shapes of its documentation (iOS 27), so that the target
// is compiled and tested on Linux. It stands in for the compiler's sake; nothing here is Apple's.
import Foundation

public protocol LanguageModel: Sendable {
    associatedtype Executor: LanguageModelExecutor where Executor.Model == Self
    var capabilities: LanguageModelCapabilities { get }
    var executorConfiguration: Executor.Configuration { get }
}

public protocol LanguageModelExecutor: Sendable {
    associatedtype Configuration: Hashable, Sendable
    associatedtype Model: LanguageModel
    init(configuration: Configuration) throws
    func prewarm(model: Model, transcript: Transcript)
    func respond(
        to request: LanguageModelExecutorGenerationRequest, model: Model,
        streamingInto channel: LanguageModelExecutorGenerationChannel
    ) async throws
}

public struct LanguageModelCapabilities: Sendable {
    public struct Capability: Sendable {}
    public init(_ capabilities: [Capability]) {}
}

public struct GenerationOptions: Sendable {
    public var temperature: Double?
    public var maximumResponseTokens: Int?
    public init(temperature: Double? = nil, maximumResponseTokens: Int? = nil) {
        self.temperature = temperature
        self.maximumResponseTokens = maximumResponseTokens
    }
}

public struct Transcript: Sendable, RandomAccessCollection {
    public enum Entry: Sendable {
        case instructions(Instructions)
        case prompt(Prompt)
        case toolOutput(ToolOutput)
        case response(Response)
    }
    public enum Segment: Sendable {
        case text(TextSegment)
        case structure(StructuredSegment)
    }
    public struct TextSegment: Sendable {
        public var content: String
        public init(content: String) { self.content = content }
    }
    public struct StructuredSegment: Sendable {}
    public struct Instructions: Sendable {
        public var segments: [Segment]
        public init(segments: [Segment]) { self.segments = segments }
    }
    public struct Prompt: Sendable {
        public var segments: [Segment]
        public init(segments: [Segment]) { self.segments = segments }
    }
    public struct ToolOutput: Sendable { public init() {} }
    public struct Response: Sendable {
        public var segments: [Segment]
        public init(segments: [Segment]) { self.segments = segments }
    }

    private let entries: [Entry]
    public init(entries: [Entry]) { self.entries = entries }
    public var startIndex: Int { 0 }
    public var endIndex: Int { entries.count }
    public subscript(index: Int) -> Entry { entries[index] }
}

public struct LanguageModelExecutorGenerationRequest: Sendable {
    public var transcript: Transcript
    public var generationOptions: GenerationOptions
    public init(transcript: Transcript, generationOptions: GenerationOptions) {
        self.transcript = transcript
        self.generationOptions = generationOptions
    }
}

public struct LanguageModelExecutorGenerationChannel: Sendable {
    public struct Event: Sendable {
        public let text: String
        public static func response(action: Action) -> Event { Event(text: action.text) }
    }
    public struct Action: Sendable {
        let text: String
        public static func appendText(_ text: String, tokenCount: Int) -> Action { Action(text: text) }
    }

    private let receive: @Sendable (Event) async -> Void
    public init(receive: @escaping @Sendable (Event) async -> Void) { self.receive = receive }
    public func send(_ event: Event) async { await receive(event) }
}
