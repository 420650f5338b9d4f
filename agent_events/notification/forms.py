"""The form of a user's channel: webhook and token go in and never come out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms

from agent_events.notification.assembly import notification_database
from agent_events.notification.conf import notification_settings
from agent_events.notification.models import UserNotificationChannel
from agent_events.notification.records import FEISHU
from agent_events.notification.webhooks import WebhookRefusedError, check_token, parse_webhook

if TYPE_CHECKING:
    ModelForm = forms.ModelForm[UserNotificationChannel]
else:
    ModelForm = forms.ModelForm


def _secret() -> forms.PasswordInput:
    return forms.PasswordInput(attrs={"autocomplete": "new-password", "size": 80}, render_value=False)


class ChannelForm(ModelForm):
    """Checks what is typed in; saving is the store's matter."""

    webhook = forms.CharField(
        required=False, widget=_secret(), help_text="Empty: stays as it is. A new one drops the token of the old one."
    )
    token = forms.CharField(required=False, widget=_secret(), help_text="Bearer token. Empty: stays as it is.")
    remove_token = forms.BooleanField(required=False, help_text="Send no bearer token any more.")

    class Meta:
        model = UserNotificationChannel
        fields = ("user_id", "enabled")

    def clean_user_id(self) -> int:
        user_id: int = self.cleaned_data["user_id"]
        if user_id <= 0:
            raise forms.ValidationError("A user's id is above 0.")
        rows = UserNotificationChannel.objects.using(notification_database())
        if self.instance.pk is None and rows.filter(user_id=user_id, channel=FEISHU).exists():
            raise forms.ValidationError("This user has a channel already: change that one.")
        return user_id

    def clean_webhook(self) -> str:
        webhook: str = self.cleaned_data["webhook"]
        if webhook:
            try:
                parse_webhook(webhook, allowed_hosts=notification_settings().allowed_hosts)
            except WebhookRefusedError as error:
                raise forms.ValidationError(str(error)) from error
        elif self.instance.pk is None:
            raise forms.ValidationError("A new channel needs a webhook.")
        return webhook

    def clean_token(self) -> str:
        token: str = self.cleaned_data["token"]
        if token:
            try:
                check_token(token)
            except WebhookRefusedError as error:
                raise forms.ValidationError(str(error)) from error
        return token

    def changes(self) -> dict[str, Any]:
        """Return what the store is to change; it has been checked."""
        cleaned = self.cleaned_data
        token = cleaned["token"] or ("" if cleaned["remove_token"] else None)
        return {"webhook": cleaned["webhook"] or None, "token": token, "enabled": cleaned["enabled"]}
