from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('probe', '0001_initial'),
    ]

    operations = [
        migrations.AddField(
            model_name='probeoutboxmessage',
            name='replay_count',
            field=models.IntegerField(db_default=0, help_text='How often a person sent it again after it died'),
        ),
    ]
