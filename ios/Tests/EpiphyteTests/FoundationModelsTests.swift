// Against shapes of Apple's framework (Tests/FoundationModels): its own is not to be had here.
import Epiphyte
import EpiphyteFoundationModels
import FoundationModels
import Testing

@Suite struct FoundationModelsTests {
    func request(_ entries: [Transcript.Entry]) -> LanguageModelExecutorGenerationRequest {
        LanguageModelExecutorGenerationRequest(
            transcript: Transcript(entries: entries), generationOptions: GenerationOptions(maximumResponseTokens: 12))
    }

    func segments(_ text: String) -> [Transcript.Segment] { [.text(.init(content: text))] }

    @Test func answersAsASessionDoes() async throws {
        let engine = try await real()
        let model = EpiphyteLanguageModel(engine: engine)
        let executor = try EpiphyteExecutor(configuration: model.executorConfiguration)
        let text = Box("")
        let channel = LanguageModelExecutorGenerationChannel { event in text.change { $0 += event.text } }
        let conversation: [Transcript.Entry] = [
            .instructions(.init(segments: segments("Be brief."))), .prompt(.init(segments: segments("Hello"))),
        ]
        try await executor.respond(to: request(conversation), model: model, streamingInto: channel)

        let session = try engine.session()
        try await session.setMessages([.system("Be brief."), .user("Hello")])
        #expect(try await session.generate(GenerateOptions(maxTokens: 12)).text() == text.value)

        let next: [Transcript.Entry] = [
            .response(.init(segments: segments(text.value))), .prompt(.init(segments: segments("And now?"))),
        ]
        text.change { $0 = "" }
        try await executor.respond(to: request(conversation + next), model: model, streamingInto: channel)
        #expect(!text.value.isEmpty)
    }

    @Test func whatItCanNotSayIsRefused() async throws {
        let model = EpiphyteLanguageModel(engine: try await real())
        let executor = try EpiphyteExecutor(configuration: model.executorConfiguration)
        let channel = LanguageModelExecutorGenerationChannel { _ in }
        let tool = request([.toolOutput(.init())])
        await #expect(throws: EpiphyteLanguageModel.Refused.self) {
            try await executor.respond(to: tool, model: model, streamingInto: channel)
        }
    }
}
