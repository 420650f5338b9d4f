import outbox.fields
from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('probe', '0003_interruptions'),
    ]

    operations = [
        migrations.AddField(
            model_name='probeoutboxmessage',
            name='event_id',
            field=outbox.fields.KeyField(db_default='', help_text="What records of this row state; empty where the payload says it, or the row's id stands for it", max_length=128),
        ),
    ]
