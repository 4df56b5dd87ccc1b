import EpiphyteCore
import Foundation

#if canImport(UIKit)
    import UIKit
#endif
#if canImport(SwiftUI)
    import SwiftUI
#endif

extension Engine {
    /// Tells the engine of memory warnings, heat, the background and the foreground, for as long as the result is held.
    public func follow() -> DeviceSignals {
        follow(center: .default, events: DeviceSignals.systemEvents, heat: { DeviceSignals.systemHeat })
    }

    func follow(
        center: NotificationCenter, events: [Notification.Name: DeviceSignals.Event], heat: @escaping @Sendable () -> ThermalState
    ) -> DeviceSignals {
        thermal(heat())
        return DeviceSignals(
            center: center,
            observers: events.map { name, event in
                // Without a queue it is called where the notification is posted, before the system goes on.
                center.addObserver(forName: name, object: nil, queue: nil) { [weak self] _ in self?.hear(event, heat: heat) }
            })
    }

    private func hear(_ event: DeviceSignals.Event, heat: () -> ThermalState) {
        switch event {
        case .thermal: thermal(heat())
        case .background: background()
        case .foreground: foreground()
        case .memoryWarning:
            let level = memoryLevelFromMemoryWarning(background: (try? state.phase) == .background)
            // A closed engine has given all back.
            Task { _ = try? await memoryPressure(level) }
        }
    }

    #if canImport(SwiftUI)
        /// For an app that watches the phases of its scenes: `.onChange(of: scenePhase) { engine.scenePhase($1) }`.
        public func scenePhase(_ phase: ScenePhase) {
            switch phase {
            case .background: background()
            case .active: foreground()
            default: break
            }
        }
    #endif
}

/// What `Engine.follow` hears, until nobody holds this.
public final class DeviceSignals: @unchecked Sendable {
    enum Event: Sendable {
        case memoryWarning, thermal, background, foreground
    }

    private let center: NotificationCenter
    private let observers: [any NSObjectProtocol]

    fileprivate init(center: NotificationCenter, observers: [any NSObjectProtocol]) {
        self.center = center
        self.observers = observers
    }

    deinit { observers.forEach(center.removeObserver) }

    /// The notifications of this system: none outside of Apple's.
    static var systemEvents: [Notification.Name: Event] {
        var events: [Notification.Name: Event] = [:]
        #if canImport(Darwin)
            events[ProcessInfo.thermalStateDidChangeNotification] = .thermal
        #endif
        #if canImport(UIKit)
            events[UIApplication.didReceiveMemoryWarningNotification] = .memoryWarning
            events[UIApplication.didEnterBackgroundNotification] = .background
            events[UIApplication.willEnterForegroundNotification] = .foreground
        #endif
        return events
    }

    /// How hot the device is: nominal outside of Apple's systems.
    static var systemHeat: ThermalState {
        #if canImport(Darwin)
            switch ProcessInfo.processInfo.thermalState {
            case .nominal: .nominal
            case .fair: .fair
            case .serious: .serious
            case .critical: .critical
            @unknown default: .critical
            }
        #else
            .nominal
        #endif
    }
}
