import Epiphyte
import Foundation
import Testing

let environment = ProcessInfo.processInfo.environment

func repository(_ path: String) -> URL { URL(fileURLWithPath: environment["EPIPHYTE_REPOSITORY"]!).appendingPathComponent(path) }

let tinyModel = repository("tests/golden/tiny_llama.gguf")
let defaultModel = URL(fileURLWithPath: environment["EPIPHYTE_MODEL"]!)
let prompt = "the sea"

/// A program of this package.
func built(_ name: String) -> URL {
    URL(fileURLWithPath: #filePath).appendingPathComponent("../../../.build/debug/\(name)").standardized
}

/// Engines are opened once for all tests.
enum Engines {
    static let tiny = Task { try await Engine.open(tinyModel, options: EngineOptions(context: 256)) }
    static let real = Task { try await Engine.open(defaultModel, options: EngineOptions(context: 512)) }
}

func tiny() async throws -> Engine { try await Engines.tiny.value }
func real() async throws -> Engine { try await Engines.real.value }

/// A session of the tiny model that holds the prompt.
func prompted(_ text: String = prompt) async throws -> Session {
    let session = try await tiny().session()
    try await session.pushText(text)
    return session
}

func greedy(_ maxTokens: Int32) -> GenerateOptions { GenerateOptions(maxTokens: maxTokens, ignoreEos: true) }

/// A folder of the test's own, gone with `body`.
func withFolder(isolation: isolated (any Actor)? = #isolation, _ body: (URL) async throws -> Void) async throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    try await body(folder)
}

/// Writes `new` where `old` begins in the file.
func tamper(_ file: URL, _ old: String, _ new: String) throws {
    var bytes = try Data(contentsOf: file)
    let found = try #require(bytes.range(of: Data(old.utf8)), "\(old) is not there")
    let place = found.lowerBound..<found.lowerBound + new.utf8.count
    try #require(bytes[place] != Data(new.utf8), "it is \(new) already")
    bytes.replaceSubrange(place, with: Data(new.utf8))
    try bytes.write(to: file)
}

/// The tiny model as one that was made for 2,048 tokens, not 256.
func longTinyModel(_ folder: URL) throws -> URL {
    let file = folder.appendingPathComponent("model.gguf")
    try FileManager.default.copyItem(at: tinyModel, to: file)
    let contextLength = "llama.context_length\u{4}\u{0}\u{0}\u{0}"
    try tamper(file, contextLength, contextLength + "\u{0}\u{8}")
    return file
}

/// The error that `body` throws.
func thrown(_ body: () async throws -> Void) async -> EpiphyteError? {
    do {
        try await body()
        return nil
    } catch {
        return error as? EpiphyteError
    }
}

/// The name of an error's case.
func cause(_ error: EpiphyteError?) -> String {
    error.map { String(describing: Mirror(reflecting: $0).children.first?.label ?? "") } ?? "nothing was thrown"
}

func cause(_ body: () async throws -> Void) async -> String { cause(await thrown(body)) }

/// What a callback collects, from any thread.
final class Box<Value>: @unchecked Sendable {
    private let lock = NSLock()
    private var held: Value

    init(_ value: Value) { held = value }

    var value: Value { lock.withLock { held } }

    func change(_ change: (inout Value) -> Void) { lock.withLock { change(&held) } }
}
