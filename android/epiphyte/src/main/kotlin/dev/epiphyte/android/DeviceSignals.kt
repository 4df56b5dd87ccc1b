package dev.epiphyte.android

import android.app.Activity
import android.app.Application
import android.content.BroadcastReceiver
import android.content.ComponentCallbacks2
import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.content.res.Configuration
import android.os.Build
import android.os.Bundle
import android.os.PowerManager
import dev.epiphyte.Engine
import dev.epiphyte.EpiphyteException
import dev.epiphyte.Trainer
import dev.epiphyte.memoryLevelFromTrimMemory
import dev.epiphyte.thermalStateFromAndroid
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.launch

/**
 * Tells the engine of the phone until the result is closed: memory that Android wants back, and heat.
 * Call it once, where the engine is opened, with a [scope] that lives as long as the engine.
 */
public fun Engine.follow(context: Context, scope: CoroutineScope): AutoCloseable {
    val application = context.applicationContext
    val memory = MemoryCallbacks(this, scope)
    application.registerComponentCallbacks(memory)
    val heat = if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q) followHeat(application) else null
    return AutoCloseable {
        application.unregisterComponentCallbacks(memory)
        heat?.close()
    }
}

private fun Engine.followHeat(context: Context): AutoCloseable {
    val power = context.getSystemService(Context.POWER_SERVICE) as PowerManager
    val listener = ThermalListener(this)
    power.addThermalStatusListener(listener) // which hears the present status at once
    return AutoCloseable { power.removeThermalStatusListener(listener) }
}

/** Lets a training wait while the battery is low, until the result is closed. */
public fun Trainer.follow(context: Context): AutoCloseable {
    val receiver = BatteryReceiver(this)
    val heard = listOf(Intent.ACTION_BATTERY_LOW, Intent.ACTION_BATTERY_OKAY, Intent.ACTION_POWER_CONNECTED)
    context.registerReceiver(receiver, IntentFilter().apply { heard.forEach(::addAction) })
    return AutoCloseable { context.unregisterReceiver(receiver) }
}

/** Gives memory back when Android asks for it; all comes back when it is next needed. */
public class MemoryCallbacks(
    private val engine: Engine,
    private val scope: CoroutineScope,
) : ComponentCallbacks2 {
    override fun onTrimMemory(level: Int) {
        scope.launch {
            try {
                engine.memoryPressure(memoryLevelFromTrimMemory(level))
            } catch (_: EpiphyteException.Closed) {
                // It has given all back.
            }
        }
    }

    @Deprecated("Android's own word; it calls onTrimMemory as well")
    override fun onLowMemory(): Unit = Unit

    override fun onConfigurationChanged(newConfig: Configuration): Unit = Unit
}

/** Heat slows training down, then pauses it, and then makes gaps between tokens. */
public class ThermalListener(private val engine: Engine) : PowerManager.OnThermalStatusChangedListener {
    override fun onThermalStatusChanged(status: Int): Unit = engine.thermal(thermalStateFromAndroid(status))
}

/**
 * Lets the GPU rest while none of the app's activities is started. Android does not ask for it, and
 * training in the background waits then: register it only where the battery matters more.
 */
public class ScreenCallbacks(private val engine: Engine) : Application.ActivityLifecycleCallbacks {
    private var started = 0

    override fun onActivityStarted(activity: Activity) {
        if (started++ == 0) engine.foreground()
    }

    override fun onActivityStopped(activity: Activity) {
        // One that turns with the screen is about to start again.
        if (--started == 0 && !activity.isChangingConfigurations) engine.background()
    }

    override fun onActivityCreated(activity: Activity, savedInstanceState: Bundle?): Unit = Unit
    override fun onActivityResumed(activity: Activity): Unit = Unit
    override fun onActivityPaused(activity: Activity): Unit = Unit
    override fun onActivitySaveInstanceState(activity: Activity, outState: Bundle): Unit = Unit
    override fun onActivityDestroyed(activity: Activity): Unit = Unit
}

internal class BatteryReceiver(private val trainer: Trainer) : BroadcastReceiver() {
    override fun onReceive(context: Context?, intent: Intent?) {
        when (intent?.action) {
            Intent.ACTION_BATTERY_LOW -> trainer.pause()
            Intent.ACTION_BATTERY_OKAY, Intent.ACTION_POWER_CONNECTED -> trainer.resume()
        }
    }
}
