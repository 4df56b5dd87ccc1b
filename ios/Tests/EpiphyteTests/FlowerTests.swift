import Foundation
import Testing

@testable import Epiphyte

#if canImport(FoundationNetworking)
import FoundationNetworking
#endif

/// Four seconds before the message was made.
private let now = Date(timeIntervalSince1970: 1_795_918_710)

/// A SuperLink that gives the answers of flwr's own, in the order in which they are asked for.
private final class RecordedLink: FlowerTransport {
    private let answers: Box<[String: [Data]]>
    private let asked = Box([String]())

    init() throws {
        let lines = try String(contentsOf: repository("tests/golden/flower_round.txt"), encoding: .utf8).split(separator: "\n")
        var answers = [String: [Data]]()
        for line in lines.map({ $0.split(separator: " ") }) {
            answers[String(line[0]), default: []].append(Data(base64Encoded: String(line[1]))!)
        }
        self.answers = Box(answers)
    }

    var calls: [String] { asked.value }

    func post(_ request: FlowerRequest) async throws -> FlowerAnswer? {
        let call = request.path.replacingOccurrences(of: "/v1/fleet/", with: "")
        asked.change { $0.append(call) }
        var body = Data()
        switch call {
        case "push-messages": body = wantsAll(request.body)
        case "push-object": body = answers.value[call]![0]
        case "send-node-heartbeat": body = Data([1 << 3, 1])
        default:
            answers.change { answers in
                guard let next = answers[call]?.first else { return }
                body = next
                answers[call]?.removeFirst()
            }
        }
        return FlowerAnswer(status: 200, date: nil, body: body)
    }

    /// The answer that asks for every object that is named.
    private func wantsAll(_ body: Data) -> Data {
        let names = body.split { !UnicodeScalar($0).properties.isASCIIHexDigit }.filter { $0.count == 64 }
        return names.reduce(Data()) { $0 + Data([3 << 3 | 2, 64]) + $1 } + Data([4 << 3 | 2, 1, 115])
    }
}

/// An app whose work is a closure.
private final class App: FlowerApp {
    let saved = Box(Data?.none)
    let ends = Box([FlowerEnd]())
    private let then: @Sendable (FlowerEnd) async throws -> Void
    private let doing: @Sendable (FlowerTask) async throws -> FlowerReply

    init(
        then: @escaping @Sendable (FlowerEnd) async throws -> Void,
        doing: @escaping @Sendable (FlowerTask) async throws -> FlowerReply
    ) {
        self.then = then
        self.doing = doing
    }

    func save(_ state: Data) async throws { saved.change { $0 = state } }

    func work(_ task: FlowerTask) async throws -> FlowerReply { try await doing(task) }

    func over(_ end: FlowerEnd) async throws {
        ends.change { $0.append(end) }
        try await then(end)
    }
}

/// Answers every request with what it was asked.
private final class Echo: URLProtocol, @unchecked Sendable {
    override class func canInit(with request: URLRequest) -> Bool { true }
    override class func canonicalRequest(for request: URLRequest) -> URLRequest { request }
    override func stopLoading() {}

    override func startLoading() {
        let path = request.url!.path
        guard path == "/v1/fleet/pull-messages", request.httpMethod == "POST" else {
            client?.urlProtocol(self, didFailWithError: URLError(.cannotConnectToHost))
            return
        }
        let said = request.value(forHTTPHeaderField: "flwr-timestamp") ?? ""
        let headers = ["date": "Sun, 29 Nov 2026 02:18:34 GMT"]
        let response = HTTPURLResponse(url: request.url!, statusCode: 412, httpVersion: "HTTP/1.1", headerFields: headers)!
        client?.urlProtocol(self, didReceive: response, cacheStoragePolicy: .notAllowed)
        client?.urlProtocol(self, didLoad: Data(said.utf8))
        client?.urlProtocolDidFinishLoading(self)
    }
}

/// A node of Flower: a whole round, killed or not, and what keeps one from going on.
@Suite struct FlowerTests {
    private let key = try! SigningKey(generating: .p256)
    private let examples = (0..<5).map { Example.pair(prompt: "the sea is \($0)", completion: " and the moon is blue") }

    private func open(_ saved: Data? = nil) async throws -> FlowerClient {
        try await .open(signer: key, saved: saved) { now }
    }

    @Test func aWholeRoundIsTakenPartIn() async throws {
        try await withFolder { folder in
            let (link, client, made) = (try RecordedLink(), try await open(), Box(Delta?.none))
            let (key, examples) = (key, examples)
            let uploaded: @Sendable (FlowerEnd) async throws -> Void = { _ in
                try await made.value!.uploaded()
                try await client.leave(.offline)
            }
            let app = App(then: uploaded) { task in
                #expect(task.kind == "train" && task.run == "77" && task.round == 1)
                #expect(task.config == ["server-round": .whole(value: 1)])
                let version = folder.appendingPathComponent("came.version")
                try task.payload!.write(to: version)
                let start = folder.appendingPathComponent("version")
                let applied = try await tiny().applyVersion(version, to: start, options: accept())
                var options = TrainOptions(
                    folder: folder.appendingPathComponent("run").path, data: .examples(examples), duration: .steps(2),
                    seqLen: 64)
                options.`init` = start.path
                options.freeze = applied.freeze
                let trainer = try await tiny().trainer(options)
                try await trainer.run()
                let delta = try await trainer.delta(since: version, signer: key)
                made.change { $0 = delta }
                return .done(payload: delta.bytes, metrics: ["num-examples": .count(value: 5), "norm": .real(value: delta.norm)])
            }
            try await client.run(app, by: link)
            #expect(app.ends.value == [.delivered])
            #expect(link.calls.prefix(3) == ["register-node", "activate-node", "pull-messages"])
            #expect(link.calls.filter { $0 == "push-object" }.count == 6)
            #expect(link.calls.last == "deactivate-node")
            #expect(app.saved.value != nil)
        }
    }

    @Test func aNodeThatIsKilledAtWorkIsGivenTheSameTaskAgain() async throws {
        let (link, begun) = (try RecordedLink(), Box(FlowerTask?.none))
        let killed = App(then: { _ in }) { task in
            begun.change { $0 = task }
            try await Task.sleep(nanoseconds: 60_000_000_000)
            return .refused(reason: "it was not killed")
        }
        let first = try await open()
        let running = Task { try await first.run(killed, by: link) }
        while begun.value == nil { try await Task.sleep(nanoseconds: 2_000_000) }
        running.cancel()
        await #expect(throws: CancellationError.self) { try await running.value }

        let client = try await open(killed.saved.value)
        let again = App(then: { _ in try await client.leave(.online) }) { task in
            #expect(task.payload == begun.value?.payload)
            return .refused(reason: "not today")
        }
        try await client.run(again, by: link)
        #expect(again.ends.value == [.refused(reason: "not today")])
        let status = try await client.status()
        #expect(status.nodeId == "18364758544493064720" && status.trouble == nil && status.requests > 0)
    }

    @Test func leavingEndsTheWorkAndWhatAnAppThrowsTheRun() async throws {
        struct Mine: Error {}
        let (client, begun) = (try await open(), Box(false))
        let idle = App(then: { _ in }) { _ in
            begun.change { $0 = true }
            try await Task.sleep(nanoseconds: 60_000_000_000)
            return .refused(reason: "it was left alone")
        }
        let link = try RecordedLink()
        let running = Task { try await client.run(idle, by: link) }
        while !begun.value { try await Task.sleep(nanoseconds: 2_000_000) }
        try await client.leave(.online)
        try await running.value
        #expect(idle.ends.value.isEmpty)
        let failing = try await open()
        await #expect(throws: Mine.self) { try await failing.run(App(then: { _ in }) { _ in throw Mine() }, by: RecordedLink()) }
    }

    @Test func noAnswerIsBorne() async throws {
        let client = try await open()
        guard case .send = try await client.poll() else { throw CancellationError() }
        try await client.answer(nil)
        guard case .wait(let millis) = try await client.poll() else { throw CancellationError() }
        #expect(millis > 0)
        #expect(try await client.status().trouble!.contains("no answer"))
        let ed25519 = try SigningKey(generating: .ed25519)
        #expect(await cause { _ = try await FlowerClient.open(signer: ed25519) } == "invalidArgument")
    }

    @Test func aURLSessionCarriesARequest() async throws {
        let configuration = URLSessionConfiguration.ephemeral
        configuration.protocolClasses = [Echo.self]
        let transport = FlowerHTTP(URL(string: "http://superlink.test/")!, session: URLSession(configuration: configuration))
        let headers = ["flwr-timestamp": "now"]
        let answer = try await transport.post(FlowerRequest(path: "/v1/fleet/pull-messages", headers: headers, body: Data([65])))
        #expect(answer?.status == 412 && answer?.body == Data("now".utf8))
        #expect(answer?.date == "Sun, 29 Nov 2026 02:18:34 GMT")
        #expect(try await transport.post(FlowerRequest(path: "/elsewhere", headers: [:], body: Data())) == nil)
    }
}
