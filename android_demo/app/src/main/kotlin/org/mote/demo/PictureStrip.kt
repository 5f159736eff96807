package org.mote.demo

import android.view.View
import android.view.ViewGroup
import android.widget.FrameLayout
import android.widget.ImageButton
import android.widget.ImageView
import android.widget.LinearLayout
import org.mote.demo.data.Picture
import org.mote.demo.data.Pictures
import org.mote.demo.ui.dp
import org.mote.demo.ui.roundCorners

/** The pictures beside the question: camera, gallery, the user's own and the samples, one of them chosen. */
internal class PictureStrip(
    private val strip: LinearLayout,
    private val pictures: Pictures,
    private val thumbnails: Thumbnails,
    private val onCamera: () -> Unit,
    private val onGallery: () -> Unit,
    private val onChosen: (Picture) -> Unit,
) {
    private val context = strip.context
    private val side = context.dp(56)
    private var shown: Pair<String, Long?>? = null

    /** Makes the strip anew only where it changed, so that TalkBack does not lose its place. */
    fun show(chosen: Picture) {
        val content = chosen.key to pictures.own?.version
        if (content == shown) return
        shown = content
        strip.removeAllViews()
        add(button(R.drawable.ic_camera, R.string.take_photo, onCamera))
        add(button(R.drawable.ic_gallery, R.string.pick_picture, onGallery))
        for (picture in listOfNotNull(pictures.own) + pictures.samples) {
            add(thumbnail(picture, picture.key == chosen.key))
        }
    }

    private fun add(view: View) {
        val gap = context.dp(4)
        val place = LinearLayout.LayoutParams(side + 2 * gap, side + 2 * gap)
        place.setMargins(0, 0, gap / 2, gap / 2)
        strip.addView(view, place)
    }

    private fun button(icon: Int, label: Int, action: () -> Unit): View = FrameLayout(context).apply {
        val button = ImageButton(context)
        button.setImageResource(icon)
        button.setBackgroundResource(R.drawable.picture_button)
        button.contentDescription = context.getString(label)
        button.setOnClickListener { action() }
        addView(button, inset(4))
    }

    private fun thumbnail(picture: Picture, isChosen: Boolean): View = FrameLayout(context).apply {
        val image = ImageView(context)
        image.scaleType = ImageView.ScaleType.CENTER_CROP
        image.roundCorners(if (isChosen) 11f else 14f)
        image.importantForAccessibility = View.IMPORTANT_FOR_ACCESSIBILITY_NO
        thumbnails.show(image, picture, context.dp(176), pictures)
        addView(image, inset(if (isChosen) 6 else 4)) // room for the ring
        if (isChosen) foreground = context.getDrawable(R.drawable.thumb_ring)
        val name = when (picture) {
            is Picture.Sample -> context.getString(R.string.sample_picture, picture.description)
            is Picture.Own -> context.getString(R.string.own_picture)
        }
        contentDescription = if (isChosen) context.getString(R.string.picture_chosen, name) else name
        isSelected = isChosen
        isFocusable = true
        setOnClickListener { onChosen(picture) }
    }

    private fun inset(dp: Int): FrameLayout.LayoutParams {
        val gap = context.dp(dp)
        return FrameLayout.LayoutParams(ViewGroup.LayoutParams.MATCH_PARENT, ViewGroup.LayoutParams.MATCH_PARENT)
            .apply { setMargins(gap, gap, gap, gap) }
    }
}

/** Shows a picture of the strip, or its larger preview. */
internal fun Thumbnails.show(view: ImageView, picture: Picture, side: Int, pictures: Pictures) {
    val version = if (picture is Picture.Own) picture.version else 0
    show(view, "${picture.key}-$version", side) { pictures.open(picture) }
}
